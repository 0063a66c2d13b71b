"""The server: answers, limits, batches, reloads, and a real process with slow clients."""

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from fastapi.testclient import TestClient

import hf_bert4rec
from hf_bert4rec.cli.main import main
from hf_bert4rec.evaluation.ranking import NOT_FINITE
from hf_bert4rec.hub.push import HANDLER, published_files
from hf_bert4rec.inference import service, serving
from hf_bert4rec.inference.export import OnnxRecommender, export_checkpoint
from hf_bert4rec.inference.handler import EndpointHandler
from hf_bert4rec.inference.serving import create_app, load_for_serving
from tests.inference.conftest import items_of
from tests.inference.test_export import checkpoint
from tests.inference.test_pipeline import HISTORIES
from tests.processes import reserve_port, started, wait_until


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    source = checkpoint(folder / "model", "bert4rec")
    return source, export_checkpoint(source, folder / "onnx")


@pytest.fixture
def recommender(folders):
    return OnnxRecommender(folders[1], threads=1)


@pytest.fixture
def client(recommender):
    with TestClient(create_app(lambda: (recommender, "shop", "abc"))) as client:
        yield client


def post(client, **body):
    return client.post("/recommend", json=body)


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_names_checkpoint_and_revision(client, recommender):
    answer = post(client, histories=[["a", "b"], []], top_k=3)
    assert answer.status_code == 200
    expected = recommender([["a", "b"], []], top_k=3)
    source = {"checkpoint": "shop", "revision": "abc"}
    assert answer.json() == {**source, "recommendations": expected, "unknown_ids": []}


def test_an_answer_lists_the_unknown_ids_of_its_request(client, recommender, folders):
    answer = post(client, histories=[["a", "x", 7.0], ["x", "b"]], deny=["y", "a"], allow=["b", "d", "z", "y"])
    assert answer.json()["unknown_ids"] == ["x", "7", "z", "y"]
    expected = recommender([["a"], ["b"]], deny=["a"], allow=["b", "d"])
    assert answer.json()["recommendations"] == expected
    handler = EndpointHandler(str(folders[0]))
    lists = {"deny": [["y", "a"], []], "allow": [["b", "z"], ["d", "y"]]}
    answer = handler({"inputs": [["a", "x", 7.0], ["x", "b"]], "parameters": lists})
    assert sorted(answer["unknown_ids"]) == ["7", "x", "y", "z"]


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 2}, {"top_k": 2.0}, {"allow": ["b", "d"]}, {"deny": ["a"]}, {"exclude_history": False},
     {"allow": None, "deny": None, "exclude_history": None}],
)  # fmt: skip
def test_options_are_those_of_the_pipeline(client, recommender, options):
    answer = post(client, histories=HISTORIES, **options).json()["recommendations"]
    assert answer == recommender(HISTORIES, **{"top_k": 10} | options | {"top_k": int(options.get("top_k", 10))})


def test_a_slash_at_the_end_is_an_unknown_route(client):
    """No redirect, whose address would come from the header `Host`."""
    assert client.post("/recommend/", json={"histories": [["a"]]}, follow_redirects=False).status_code == 404


def test_similar_items(client, recommender):
    answer = client.post("/similar", json={"items": ["a", "b"], "top_k": 2})
    assert answer.json() == {"checkpoint": "shop", "revision": "abc", "similar": recommender.similar(["a", "b"], 2)}
    unknown = client.post("/similar", json={"items": ["nothing"]})
    assert (unknown.status_code, unknown.json()) == (
        404,
        {"detail": "items: the model has no item 'nothing'. Pass the ID of an item of the model."},
    )


def test_the_server_takes_a_pipeline_too(folders):
    pipeline = hf_bert4rec.pipeline(folders[0], device="cpu")
    with TestClient(create_app(lambda: (pipeline, "shop", None))) as client:
        assert post(client, histories=[["a"]]).json()["recommendations"] == pipeline([["a"]])


def test_defaults_of_a_pipeline_hold_in_addition_to_a_request(folders):
    pipeline = hf_bert4rec.pipeline(folders[0], device="cpu", top_k=4, deny=["a", "b"], allow=["a", "d", "e", "g"])
    expected = items_of(pipeline([["f"]]))[0]
    assert sorted(expected) == ["d", "e", "g"]
    with TestClient(create_app(lambda: (pipeline, "shop", None))) as client:
        for lists in ({}, {"deny": []}, {"allow": [*"abcdefgh"]}, {"allow": [*"abcdefgh"], "deny": ["h"]}):
            answer = post(client, histories=[["f"]], **lists).json()["recommendations"]
            assert items_of(answer) == [expected]
        answer = post(client, histories=[["f"]], deny=["d"]).json()["recommendations"]
        assert items_of(answer) == [[item for item in expected if item != "d"]]
        assert len(post(client, histories=[["f"]], top_k=1).json()["recommendations"][0]) == 1


def test_health_readiness_and_numbers(client):
    assert client.get("/health").json() == {"status": "running"}
    assert client.get("/ready").json() == {"checkpoint": "shop", "revision": "abc"}
    post(client, histories=[["a", "x", "y"], ["b"]])
    post(client, histories=[], top_k=0)
    client.get("/nothing")
    numbers = client.get("/metrics").text
    for line in (
        'requests_total{route="/recommend",status="200"} 1.0',
        'requests_total{route="/recommend",status="422"} 1.0',
        'requests_total{route="other",status="404"} 1.0',
        'request_seconds_count{route="/recommend"} 2.0',
        "unknown_ids_total 2.0",
        "batch_histories_sum 2.0",
    ):
        assert line in numbers


def test_the_description_of_the_routes(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/recommend", "/similar", "/health", "/ready", "/metrics"}
    assert client.get("/docs").status_code == 200


# ---- invalid requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("{", 422, "character 1: JSON decode error"),
        ("[]", 422, "body: Input should be"),
        ("5", 422, "body: Input should be"),
        ("{}", 422, "histories: Field required"),
        ('{"histories": ["a"]}', 422, "histories.0: Input should be a valid list"),
        ('{"histories": [[true]]}', 422, "histories.0.0: an item ID must be text or a whole number"),
        ('{"histories": [[1.5]]}', 422, "an item ID must be text or a whole number"),
        ('{"histories": [[NaN]]}', 422, "an item ID must be text or a whole number"),
        ('{"histories": [["\\ud800"]]}', 422, "an item ID must have at most 1000 characters, all of them valid"),
        ('{"histories": [[], []], "top_k": 0}', 422, "top_k: Input should be greater than or equal to 1"),
        ('{"histories": [[]], "top_k": -1}', 422, "top_k: Input should be greater than or equal to 1"),
        ('{"histories": [[]], "top_k": 1000000000}', 422, "top_k: Input should be less than or equal to 1000"),
        ('{"histories": [[]], "topk": 1}', 422, "topk: Extra inputs are not permitted"),
        ('{"histories": [[]], "where": {"in_stock": true}}', 422, "where: Extra inputs are not permitted"),
        ('{"histories": [[]], "\\ud800": 1}', 422, "unable to parse raw data as a unicode string"),
        ('{"histories": [[]], "exclude_history": "no"}', 422, "exclude_history: Input should be a valid boolean"),
        (json.dumps({"histories": [[]] * 65}), 422, "histories: List should have at most 64 items"),
        (json.dumps({"histories": [["a"] * 10_001]}), 422, "histories.0: List should have at most 10000 items"),
        (json.dumps({"histories": [["a"] * 10**6]}), 413, "The request has more than 1,048,576 bytes."),
        ('{"histories": [[' + "9" * 5000 + "]]}", 400, "There was an error parsing the body"),
        (b'{"histories": [["\xe9"]]}', 400, "There was an error parsing the body"),
        ("[" * 100_000, 400, "There was an error parsing the body"),
    ],
)
def test_an_invalid_request_gets_a_reason(client, body, status, reason):
    answer = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert reason in answer.json()["detail"]
    assert post(client, histories=[["a"]]).status_code == 200


def test_a_request_that_is_not_declared_as_json_gets_the_header_that_it_needs(client):
    answer = client.post("/recommend", content='{"histories": [["a"]]}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith("send the header Content-Type: application/json")


def test_numbers_are_ids(client, recommender):
    assert post(client, histories=[[1, "1", 10**30]]).json()["recommendations"] == recommender([[]])


def test_histories_are_neither_logged_nor_in_answers(client, caplog):
    with caplog.at_level(logging.DEBUG):
        answer = post(client, histories=[["secret-1", True], ["secret-2"] * 10_001])
        assert post(client, histories=[["b", "secret-3"]]).status_code == 200
    assert "secret" not in answer.text
    assert "secret" not in caplog.text


def test_damaged_weights_give_an_error_and_the_server_lives(client, recommender, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(recommender, "_session", Broken())
        answer = post(client, histories=[["a"]])
        assert (answer.status_code, answer.json()["detail"]) == (500, serving_error())
        patch.setattr(recommender, "_unit_vectors", np.full_like(recommender._unit_vectors, np.nan))
        answer = client.post("/similar", json={"items": ["a"]})
        assert (answer.status_code, answer.json()["detail"]) == (500, serving_error())
    assert post(client, histories=[["a"]]).status_code == 200


def test_a_rule_that_fails_gives_an_error_without_its_text(folders):
    pipeline = hf_bert4rec.pipeline(folders[0], device="cpu", rerank=lambda candidates: {}["secret"])
    with TestClient(create_app(lambda: (pipeline, "shop", None))) as client:
        answer = post(client, histories=[["a"]])
        expected = "Scoring failed. See the log of the server."
        assert (answer.status_code, answer.json()["detail"]) == (500, expected)
        assert post(client, histories=[]).status_code == 200


class Broken:
    def run(self, outputs, inputs):
        return np.zeros((4, 10), np.int64), np.full((4, 10), np.nan)


def serving_error():
    return f"The scores are NaN or infinite. {NOT_FINITE}"


# ---- batches and overload --------------------------------------------------------------------------------------------


class Slow:
    """A recommender that waits until it may answer, and notes the batches."""

    def __init__(self, recommender):
        self.recommender, self.catalog, self.batches, self.may = recommender, recommender.catalog, [], threading.Event()

    def __call__(self, histories, **options):
        self.batches.append(len(histories))
        assert self.may.wait(20)
        return self.recommender(histories, **options)


async def arrived(app, slow, number, tasks=()):
    """Wait until so many histories are scored or wait, or their tasks have an answer."""
    async with asyncio.timeout(60):
        while sum(slow.batches) + len(app.state.service._waiting) + sum(task.done() for task in tasks) < number:
            await asyncio.sleep(0.02)


async def many(app, slow, bodies, before_answers):
    """Send requests. The first one is alone in its batch, so the others wait."""

    def send(client, body):
        return asyncio.create_task(client.post("/recommend", json=body))

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", timeout=30) as client,
    ):
        tasks = [send(client, bodies[0])]
        await arrived(app, slow, 1)
        tasks += [send(client, body) for body in bodies[1:]]
        await before_answers(tasks, client)
        return await asyncio.gather(*tasks)


def test_requests_that_wait_are_scored_together_and_each_gets_its_own_answer(recommender):
    slow = Slow(recommender)
    app = create_app(lambda: (slow, "shop", None))
    bodies = [{"histories": [[item]], "top_k": 1 + place % 3} for place, item in enumerate("abdefghij")]
    bodies[4] |= {"deny": ["a"]}
    bodies[5] |= {"allow": ["b", "d"]}

    async def wait(tasks, client):
        await arrived(app, slow, len(bodies))
        slow.may.set()

    answers = asyncio.run(many(app, slow, bodies, wait))
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 200, answer.text
        options = {name: value for name, value in body.items() if name != "histories"}
        expected = recommender(body["histories"], **options)
        assert items_of(answer.json()["recommendations"]) == items_of(expected)
    assert len(slow.batches) <= 5
    assert sum(slow.batches) == len(bodies)


def test_a_rule_gets_the_candidates_of_its_own_request(folders):
    shop = hf_bert4rec.pipeline(folders[0], device="cpu", rerank=lambda found: -found.logits, candidates=2)
    slow = Slow(shop)
    slow._postprocess_params = shop._postprocess_params  # with the rule
    app = create_app(lambda: (slow, "shop", None))
    bodies = [{"histories": [["a"]], "top_k": top_k} for top_k in (1, 2, 8)]

    async def wait(tasks, client):
        await arrived(app, slow, len(bodies))
        slow.may.set()

    answers = asyncio.run(many(app, slow, bodies, wait))
    for body, answer in zip(bodies, answers, strict=True):
        expected = shop(body["histories"], top_k=body["top_k"])
        assert items_of(answer.json()["recommendations"]) == items_of(expected)


def test_overload_is_refused_at_once(recommender, monkeypatch):
    monkeypatch.setattr(service, "MAX_WAITING", 4)
    slow = Slow(recommender)
    app = create_app(lambda: (slow, "shop", None))

    async def wait(tasks, client):
        await arrived(app, slow, len(tasks), tasks)
        refused = [task.result().status_code for task in tasks if task.done()]
        assert set(refused) == {503}
        assert (await client.get("/ready")).status_code == 200
        slow.may.set()

    answers = asyncio.run(many(app, slow, [{"histories": [["a"]]}] * 20, wait))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 4
    refused = answers[statuses.index(503)]
    assert refused.headers["Retry-After"] == "1"
    assert refused.json() == {"detail": "Too many requests are waiting. Try again later."}


def test_requests_for_similar_items_and_histories_wait_separately(recommender, monkeypatch):
    monkeypatch.setattr(service, "MAX_WAITING", 4)
    slow = Slow(recommender)
    slow.similar = recommender.similar
    app = create_app(lambda: (slow, "shop", None))

    async def ask():
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", timeout=30) as client,
        ):

            def post(route, **body):
                return asyncio.create_task(client.post(route, json=body))

            first = post("/recommend", histories=[["a"]])
            await arrived(app, slow, 1)
            similar = post("/similar", items=["a", "b", "d", "e"])
            await arrived(app, slow, 2)
            refused = await post("/similar", items=["a"])
            second = post("/recommend", histories=[["a"], ["b"]])
            await arrived(app, slow, 3)
            slow.may.set()
            statuses = [answer.status_code for answer in (await first, await similar, refused, await second)]
            return statuses, (await client.get("/metrics")).text

    statuses, numbers = asyncio.run(ask())
    assert statuses == [200, 200, 503, 200]
    assert "batch_histories_sum 3.0" in numbers
    assert "batch_histories_count 2.0" in numbers


def test_what_waits_is_refused_when_the_server_stops(recommender):
    slow = Slow(recommender)
    app = create_app(lambda: (slow, "shop", None))

    async def stop():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            async with app.router.lifespan_context(app):
                tasks = [asyncio.create_task(client.post("/recommend", json={"histories": [["a"]]})) for _ in range(3)]
                await arrived(app, slow, 3)
            answers = await asyncio.wait_for(asyncio.gather(*tasks), 10)
            slow.may.set()
        return [answer.status_code for answer in answers]

    assert asyncio.run(stop()) == [503, 503, 503]


def messages_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == service.__name__]


# ---- reloads ---------------------------------------------------------------------------------------------------------


def test_a_reload_replaces_the_checkpoint_and_a_broken_one_does_not(recommender, caplog):
    states = iter([(recommender, "shop", "1"), (recommender, "shop", "2"), *[ValueError("damaged")] * 2])

    def load():
        state = next(states)
        if isinstance(state, Exception):
            raise state
        return state

    app = create_app(load)
    with TestClient(app) as client, caplog.at_level(logging.INFO, "hf_bert4rec"):
        for revision in ("1", "2", "2"):
            assert post(client, histories=[["a"]]).json()["revision"] == revision
            client.portal.call(app.state.service.reload)
        numbers = client.get("/metrics").text
    failed = "Reloading failed. The loaded checkpoint stays in use. Reason: damaged"
    in_use = "In use: checkpoint shop, revision 2"
    assert messages_of(caplog) == [in_use, failed, in_use, failed, in_use]
    assert 'reloads_total{result="loaded"} 1.0' in numbers
    assert 'reloads_total{result="failed"} 2.0' in numbers


def test_calls_during_a_reload_lead_to_one_more_reload(recommender):
    loads = []

    def load():
        loads.append("loaded")
        return recommender, "shop", None

    async def reload_five_times():
        await asyncio.gather(*(app.state.service.reload() for _ in range(5)))

    app = create_app(load)
    with TestClient(app) as client:
        client.portal.call(reload_five_times)
        assert len(loads) == 3  # at the start, for the first call, and for the four others
        client.portal.call(app.state.service.reload)
    assert len(loads) == 4


def test_a_missing_folder_is_reported_before_an_export(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(FileNotFoundError, match=r"gone: found no such folder\. Check the path\."):
        load_for_serving(tmp_path / "gone")


def test_the_log_names_no_revision_of_a_checkpoint_from_a_folder(recommender, caplog):
    app = create_app(lambda: (recommender, "runs/model", None))
    with TestClient(app) as client, caplog.at_level(logging.INFO, "hf_bert4rec"):
        client.portal.call(app.state.service.reload)
        assert client.get("/ready").json() == {"checkpoint": "runs/model", "revision": None}
    assert messages_of(caplog) == ["In use: checkpoint runs/model"]


@pytest.mark.parametrize("module", ["fastapi", "prometheus_client", "uvicorn"])
def test_a_missing_package_of_the_server_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    monkeypatch.delitem(sys.modules, "hf_bert4rec.inference.serving")
    advice = r"Run `pip install 'hf-bert4rec\[serve\]'`\."
    with pytest.raises(ImportError, match=rf"The server needs the package {module}\. {advice}$"):
        importlib.import_module("hf_bert4rec.inference.serving")


def test_a_checkpoint_is_exported_to_be_served(folders):
    recommender, name, revision = load_for_serving(folders[0])
    assert (name, revision) == ("/".join(folders[0].parts[-2:]), None)
    expected = hf_bert4rec.pipeline(folders[0], device="cpu")(HISTORIES)
    assert items_of(recommender(HISTORIES)) == items_of(expected)


def test_what_cannot_be_served_is_refused(folders, tmp_path, monkeypatch):
    shutil.copytree(folders[0], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or cut off"):
        load_for_serving(tmp_path / "model")
    monkeypatch.setattr(serving, "EXPORT", "import sys; sys.stderr.write('Killed'); sys.exit(137)")
    with pytest.raises(ValueError, match=r"the export ended with exit status 137 \(Killed\)\. Run `hf-bert4rec export"):
        load_for_serving(folders[0])


def test_an_export_that_takes_too_long_names_the_command(folders, monkeypatch):
    monkeypatch.setattr(serving, "EXPORT_SECONDS", 0.01)
    with pytest.raises(TimeoutError, match=r"the export took over 0 s\. Run `hf-bert4rec export"):
        load_for_serving(folders[0])


# ---- a process -------------------------------------------------------------------------------------------------------


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def process(folders, tmp_path):
    folder = shutil.copytree(folders[1], tmp_path / "served")
    port = reserve_port()
    command = [sys.executable, "-m", "hf_bert4rec.cli.main", "serve", str(folder), "--port", str(port)]
    environment = os.environ | {"WEB_CONCURRENCY": "2"}  # one process serves nevertheless
    with started(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        wait_until(lambda: listens(port), server)
        yield server, f"http://127.0.0.1:{port}", port, folder
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)
        assert "Traceback" not in server.stderr.read()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals")
def test_a_process_reloads_without_losing_requests_and_survives_slow_clients(process):
    server, address, port, folder = process
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    idle[0].sendall(b"POST /recommend HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{")
    facts = json.loads((folder / "export.json").read_text())
    statuses, revisions = [], []
    with httpx.Client() as client:

        def ask():
            answer = client.post(f"{address}/recommend", json={"histories": [["a"]]})
            statuses.append(answer.status_code)
            return answer.json()["revision"]

        assert ask() is None
        for revision, result in (("new", "loaded"), ("broken", "failed")):
            (folder / "export.json").write_text(json.dumps({**facts, "revision": revision}))
            if result == "failed":
                (folder / "model.onnx").write_bytes(b"damaged")

            def reloaded(line=f'reloads_total{{result="{result}"}} 1.0'):
                revisions.append(ask())
                return line in client.get(f"{address}/metrics").text

            server.send_signal(signal.SIGHUP)
            wait_until(reloaded, server)
            assert ask() == "new"
    for connection in idle:
        connection.close()
    assert set(statuses) == {200}
    assert "broken" not in revisions


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals")
def test_a_signal_while_a_checkpoint_is_loaded_loads_it_again(folders, monkeypatch):
    loaded = []

    def load(*arguments):
        loaded.append(arguments)
        if len(loaded) == 1:  # the checkpoint is replaced after it was read
            os.kill(os.getpid(), signal.SIGHUP)
        return load_for_serving(folders[1])

    monkeypatch.setattr(serving, "load_for_serving", load)
    monkeypatch.setattr(serving.uvicorn, "run", lambda *_, **__: None)
    monkeypatch.chdir(folders[1].parent)  # a folder stays a folder: if it is missing later, the Hub is not asked
    usual = signal.getsignal(signal.SIGHUP)
    try:
        for name in ("org/name", folders[1].name):
            serving.serve(name, port=0)
    finally:
        signal.signal(signal.SIGHUP, usual)
    assert loaded[:2] == [("org/name", None, ())] * 2
    assert loaded[2:] == [(folders[1].absolute(), None, ())]


def test_a_link_that_changes_while_it_is_loaded_does_not_mix_files(folders, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(folders[1])
    read = serving.OnnxRecommender

    def replace_the_link(folder):
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        return read(folder)

    expected = load_for_serving(folders[1])[1]
    monkeypatch.setattr(serving, "OnnxRecommender", replace_the_link)
    assert load_for_serving(tmp_path / "link")[1] == expected


WAIT = """
import signal, sys
from hf_bert4rec.inference import serving
serving.EXPORT = serving.EXPORT.rpartition("from")[0] + "open(os.environ['BEGUN'], 'w'); threading.Event().wait()"
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job of a shell
serving.serve(sys.argv[1], port=0)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(("number", "codes"), [(signal.SIGTERM, {143}), (signal.SIGINT, {-signal.SIGINT}), (9, {-9})])
def test_a_server_that_loads_ends_at_once_and_its_export_too(folders, tmp_path, number, codes):
    begun = tmp_path / "begun"
    command, environment = [sys.executable, "-c", WAIT, str(folders[0])], os.environ | {"BEGUN": str(begun)}
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as server:
        wait_until(begun.exists, server)
        [export] = psutil.Process(server.pid).children()
        server.send_signal(number)
        assert server.wait(20) in codes
        assert psutil.wait_procs([export], 20)[1] == []


STOP = """
import sys
from hf_bert4rec.inference import serving
serving.STOP_SECONDS = 1
serving.serve(sys.argv[1], port=int(sys.argv[2]))
"""


def test_a_server_stops_while_a_client_does_not_read_its_answers(folders):
    port = reserve_port()
    body = json.dumps({"histories": [[f"{number:0900}" for number in range(1000)]]}).encode()
    head = (
        f"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    command = [sys.executable, "-c", STOP, str(folders[1]), str(port)]
    with started(command, stderr=subprocess.PIPE, text=True) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        wait_until(lambda: client.connect_ex(("127.0.0.1", port)) == 0, server)
        client.settimeout(2)
        with contextlib.suppress(TimeoutError):  # the server reads no more requests while its answers wait
            for _ in range(30):
                client.sendall(head.encode() + body)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)
        log = server.stderr.read()
    assert "A request was cancelled before the client received the whole answer." in log
    assert "Traceback" not in log


# ---- Inference Endpoints ---------------------------------------------------------------------------------------------


def test_the_handler_of_a_pushed_repository_answers_as_the_server(folders, tmp_path):
    """The toolkit of Inference Endpoints imports `handler.py` from its path, and calls the class with the body."""
    for name, content in (published_files(folders[0]) | HANDLER).items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
    assert {*HANDLER} == {"handler.py"}
    assert set(HANDLER) <= {path.name for path in tmp_path.iterdir()}
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", tmp_path / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(str(tmp_path))
    expected = hf_bert4rec.pipeline(folders[0], device="cpu")([["a", "b"]], top_k=2)
    for body in (
        {"inputs": {"histories": [["a", "b"]], "top_k": 2}},
        {"inputs": {"histories": [["a", "b"]], "top_k": 2}, "parameters": {}},
        {"inputs": {"histories": [["a", "b"]]}, "parameters": {"top_k": 2}},
        {"inputs": [["a", "b"]], "parameters": {"top_k": 2}},
    ):
        answer = handler(json.loads(json.dumps(body)))
        source = {"checkpoint": tmp_path.name, "revision": None}
        assert answer == {**source, "recommendations": expected, "unknown_ids": []}
        assert json.loads(json.dumps(answer)) == answer
    for body in ({}, [], {"inputs": None}, {"inputs": {"top_k": 2}}, {"inputs": [["a"]], "parameters": [2]}):
        with pytest.raises(ValueError, match="Histories must be a list"):
            handler(body)
    with pytest.raises(ValueError, match=r"Unknown option 'batch_size'\. The options are top_k, \w+, allow, deny\."):
        handler({"inputs": [["a"]], "parameters": {"batch_size": 1}})
    with pytest.raises(ValueError, match="Unknown option 'where'"):
        handler({"inputs": {"histories": [["a"]], "where": {"in_stock": True}}})
    with pytest.raises(ValueError, match=r"Unknown field 'top_k'\. The fields are inputs and parameters\."):
        handler({"inputs": [["a"]], "top_k": 2})
    both = handler({"inputs": {"histories": [["a"]], "top_k": 3}, "parameters": {"top_k": 2}})
    assert [len(answer) for answer in both["recommendations"]] == [2]


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_does_not_exist_is_refused(port, capsys):
    with pytest.raises(SystemExit):
        main(["serve", "nothing", f"--port={port}"])
    assert f"argument --port: must be from 0 to 65535, found {port}" in capsys.readouterr().err
