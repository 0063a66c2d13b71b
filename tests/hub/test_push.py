"""Pushed to a Hub and loaded from it through the real client and command line, with this package and without it."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import hf_bert4rec
from hf_bert4rec import Bert4RecForMaskedLM, Gru4RecForMaskedLM, SasRecForMaskedLM, item_tokenizer
from hf_bert4rec.hub.checkpoint import check_folder
from hf_bert4rec.hub.errors import hub_errors
from hf_bert4rec.hub.push import HANDLER, push_checkpoint
from hf_bert4rec.hub.run_facts import RunFacts
from tests.conftest import needs, small_config, small_facts
from tests.hub_server import OWNER, TOKEN, Handler, Refused, commit_id

ROOT = Path(__file__).parents[2]
NAME = f"{OWNER}/bert4rec-small"
CODE = {
    "configuration_bert4rec.py", "heads.py", "inputs.py", "item_loss.py", "layers.py", "modeling_bert4rec.py",
    "special_tokens.py",
}  # fmt: skip
LOADED = {"config.json", "items.parquet", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
HISTORIES = [["a", "c", "d"], ["b"]]


def another_machine(monkeypatch, cache: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))


def go_offline(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path, model, tokenizer) -> Path:
    """A checkpoint with all its files, and some that must not be published."""
    folder = tmp_path / "bert4rec-small"
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    small_facts().save(folder)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# Small\n")
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "notes.py", ".env"):
        (folder / name).write_bytes(b"private")
    return folder


def hf(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The real command line of huggingface_hub."""
    command = [str(Path(sys.executable).with_name("hf")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=child_environment(**environment))


def child_environment(**environment: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "NO_COLOR": "1",
        **environment,
    }


# ---------------------------------------------------------------------------------------------------- round trip


def test_a_checkpoint_goes_up_in_one_commit_and_nothing_else_of_its_folder(hub, folder):
    address = push_checkpoint(folder, NAME)
    repository = hub.repositories[NAME]
    assert address.startswith(f"{hub.url}/{NAME}/commit/")
    assert repository.messages == ["initial commit", "Upload bert4rec-small"]
    assert set(repository.files) == LOADED | CODE | {"run_facts.json", "README.md", *HANDLER}
    own = repository.files.keys() - HANDLER.keys()
    assert all(repository.files[path] == (folder / path).read_bytes() for path in own)


def test_run_facts_go_up_without_the_folders_of_this_machine_and_stay_as_they_are_here(hub, folder):
    recipe = {"seed": 1, "data": str(folder / "log.csv"), "titles": "data/titles.csv", "example": ["/a/b"]}
    small_facts(recipe=recipe).save(folder)
    push_checkpoint(folder, NAME)
    assert json.loads(hub.repositories[NAME].files["run_facts.json"])["recipe"] == {
        "seed": 1, "data": "log.csv", "titles": "data/titles.csv", "example": ["/a/b"]
    }  # fmt: skip
    assert RunFacts.load(folder).recipe == recipe


def test_on_another_machine_the_auto_classes_and_the_pipeline_give_the_same(hub, folder, model, tmp_path, monkeypatch):
    expected = hf_bert4rec.pipeline(folder)(HISTORIES)
    push_checkpoint(folder, NAME)
    another_machine(monkeypatch, tmp_path / "another")
    assert isinstance(AutoModel.from_pretrained(NAME), hf_bert4rec.Bert4RecModel)
    ids = torch.tensor([[3, 5, 1]])
    assert torch.equal(AutoModelForMaskedLM.from_pretrained(NAME)(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(NAME).titles[:3] == ["Alpha", "Beta", None]
    assert hf_bert4rec.pipeline(NAME)(HISTORIES) == expected

    go_offline(monkeypatch)
    asked = len(hub.requests)
    assert hf_bert4rec.pipeline(NAME)(HISTORIES) == expected
    assert isinstance(AutoModel.from_pretrained(NAME), hf_bert4rec.Bert4RecModel)
    assert len(hub.requests) == asked


def test_with_the_package_the_code_of_a_repository_is_neither_loaded_nor_asked_about(hub, folder, monkeypatch):
    for name in CODE:
        (folder / name).write_text("raise SystemExit('executed')")
    push_checkpoint(folder, NAME)
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked: {question}"))
    for trust in (None, True, False):
        assert type(AutoModel.from_pretrained(NAME, trust_remote_code=trust)) is hf_bert4rec.Bert4RecModel
    hf_bert4rec.pipeline(NAME)
    assert not [request for request in hub.requests if request.endswith(".py")]


def test_a_pinned_revision_stays_what_it_was(hub, folder, model):
    first = push_checkpoint(folder, NAME).rsplit("/", 1)[1]
    expected = hf_bert4rec.pipeline(folder)(HISTORIES)
    torch.nn.init.ones_(model.lm_head.bias[3:5].data)
    model.save_pretrained(folder)
    second = push_checkpoint(folder, NAME).rsplit("/", 1)[1]
    assert first != second
    assert hf_bert4rec.pipeline(NAME, revision=first)(HISTORIES) == expected
    assert hf_bert4rec.pipeline(NAME)(HISTORIES) != expected
    assert torch.equal(
        AutoModelForMaskedLM.from_pretrained(NAME, revision=second).lm_head.bias.data, model.lm_head.bias.data
    )


def test_a_private_repository_opens_with_the_token_alone(hub, folder, monkeypatch):
    push_checkpoint(folder, NAME, private=True)
    assert hub.repositories[NAME].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match=r"no such repository on the Hub.*If the repository is private, log in"):
        hf_bert4rec.pipeline(NAME)
    assert len(hf_bert4rec.pipeline(NAME, token=TOKEN)(HISTORIES)) == 2


def test_files_that_only_an_older_checkpoint_had_are_deleted(hub, folder):
    push_checkpoint(folder, NAME)
    item_tokenizer(list("abcdefghij"), max_length=5).save_pretrained(folder)
    push_checkpoint(folder, NAME)
    assert "items.parquet" not in hub.repositories[NAME].files
    assert hf_bert4rec.pipeline(NAME)(HISTORIES)[0][0]["title"] is None


def test_only_the_files_of_a_checkpoint_are_published(hub, folder):
    for name in ("private.png", "optimizer.safetensors", "notes.md", "model-00009-of-00009.safetensors"):
        (folder / name).write_bytes(b"private")
    (folder / "learning_curve.png").write_bytes(b"curve")
    push_checkpoint(folder, NAME)
    assert set(hub.repositories[NAME].files) == {
        *CODE, *LOADED, *HANDLER, "run_facts.json", "README.md", "learning_curve.png",
    }  # fmt: skip


def test_shards_go_up_with_the_index_that_lists_them(hub, folder, model):
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="2KB")
    push_checkpoint(folder, NAME)
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    assert set(hub.repositories[NAME].files) >= {*shards, "model.safetensors.index.json"}
    assert hf_bert4rec.pipeline(NAME)(HISTORIES) == hf_bert4rec.pipeline(folder)(HISTORIES)


def test_a_card_of_an_older_checkpoint_and_pickles_go_too(hub, folder):
    push_checkpoint(folder, NAME)
    hub.repositories[NAME].files["training_args.bin"] = b"pickle"
    (folder / "README.md").unlink()
    push_checkpoint(folder, NAME)
    assert not {"README.md", "training_args.bin"} & set(hub.repositories[NAME].files)


def test_two_that_push_at_once_do_not_mix(hub, folder):
    push_checkpoint(folder, NAME)
    repository = hub.repositories[NAME]

    def push_first():
        repository.commits.append({**repository.files, "items.parquet": b"of another checkpoint"})

    hub.meanwhile = push_first
    with pytest.raises(OSError, match="the Hub received another commit in the meantime"):
        push_checkpoint(folder, NAME)
    assert repository.files["items.parquet"] == b"of another checkpoint"
    assert len(repository.commits) == 3


def test_a_lost_answer_does_not_claim_that_nothing_was_pushed(hub, folder):
    hub.lose_answers = True
    with pytest.raises(ConnectionError, match="a commit is made as a whole or not at all"):
        push_checkpoint(folder, NAME)
    assert set(hub.repositories[NAME].files) >= LOADED


def test_a_token_that_is_passed_is_used(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    push_checkpoint(folder, NAME, token=TOKEN)
    assert set(hub.repositories[NAME].files) >= LOADED


def test_the_command_line_of_the_hub_uploads_and_downloads_a_checkpoint(hub, tmp_path):
    release = ROOT / "model_cards" / "bert4rec-ml1m"
    uploaded = hf("upload", NAME, str(release))
    assert uploaded.returncode == 0, uploaded.stderr
    downloaded = hf("download", NAME, "--local-dir", str(tmp_path / "there"), HF_HOME=str(tmp_path))
    assert downloaded.returncode == 0, downloaded.stderr
    for path in release.iterdir():
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes(), path.name
    check_folder(tmp_path / "there")


# ----------------------------------------------------------------------------------------- without the package

WITHOUT_US = """
import sys
sys.path.append(sys.argv[1])
import importlib.util
assert not [package for package in ("hf_bert4rec", "datasets", "pyarrow") if importlib.util.find_spec(package)]
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

for name, folder in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
    try:
        AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        print(error)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    batch = tokenizer([["a", "c", "d"], ["b"]], is_split_into_words=True, padding=True, return_tensors="pt")
    found = dict(batch)
    model = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)
    found["logits"] = model(**batch).logits
    found["states"] = AutoModel.from_pretrained(name, trust_remote_code=True)(**batch).last_hidden_state
    again = folder + "/again"
    model.save_pretrained(again)
    found["again"] = AutoModelForMaskedLM.from_pretrained(again, trust_remote_code=True)(**batch).logits
    found["states again"] = AutoModel.from_pretrained(again, trust_remote_code=True)(**batch).last_hidden_state
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder + "/found.safetensors")
"""


def site_of(folder: Path, *packages: str) -> Path:
    """A folder that holds nothing but the installed packages and what they require."""
    folder.mkdir()
    wanted, done = list(packages), set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in done:
            continue
        done.add(name)
        for path in {file.parts[0] for file in distribution(name).files or ()} - {"..", "__pycache__"}:
            if not (folder / path).exists():  # a namespace can be shared
                (folder / path).symlink_to(distribution(name).locate_file(path))
        needed = map(Requirement, distribution(name).requires or ())
        wanted += [need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    return folder


RECIPE = {"rope_theta": 200, "conv_kernel_size": 3, "prediction_head": False}
SASREC = CODE | {"modeling_sasrec.py"}
GRU4REC = SASREC | {"modeling_gru4rec.py"}


KINDS = {
    "plain": (Bert4RecForMaskedLM, {}, CODE),
    "recipe": (Bert4RecForMaskedLM, RECIPE, CODE),
    "sasrec": (SasRecForMaskedLM, {}, SASREC),
    "gru4rec": (Gru4RecForMaskedLM, {}, GRU4REC),
}


def test_torch_and_transformers_alone_give_the_same_logits_to_the_bit(hub, tokenizer, tmp_path):
    models, words = {}, []
    for name, (kind, options, _) in KINDS.items():
        torch.manual_seed(0)
        sizes = small_config(len(tokenizer), 5, **options).to_diff_dict()
        models[name] = kind(kind.config_class(**{key: it for key, it in sizes.items() if key != "auto_map"})).eval()
        for part in (models[name], tokenizer):
            part.save_pretrained(tmp_path / name / "model")
        push_checkpoint(tmp_path / name / "model", f"{OWNER}/{name}")
        words += [f"{OWNER}/{name}", str(tmp_path / name)]
    site = site_of(tmp_path / "site", "torch", "transformers")
    command = [sys.executable, "-I", "-S", "-c", WITHOUT_US, str(site), *words]
    environment = child_environment(HF_HOME=str(tmp_path / "home"))
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("contains custom code which must be executed") == len(KINDS)
    for name, (kind, _, code) in KINDS.items():
        model, found = models[name], load_file(tmp_path / name / "found.safetensors")
        assert found["input_ids"].tolist() == [[3, 5, 6], [4, 0, 0]]
        batch = {name: found[name] for name in ("input_ids", "attention_mask")}
        for key in ("logits", "again"):
            assert torch.equal(found[key], model(**batch).logits)
        for key in ("states", "states again"):
            assert torch.equal(found[key], model.model(**batch).last_hidden_state)
        again = tmp_path / name / "again"
        assert {path.name for path in again.iterdir()} == {"config.json", "model.safetensors", *code}
        assert isinstance(AutoModelForMaskedLM.from_pretrained(again), kind)


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_an_interrupted_upload_changes_nothing_and_can_be_repeated(hub, folder, model):
    push_checkpoint(folder, NAME)
    before = dict(hub.repositories[NAME].files)
    torch.nn.init.ones_(model.lm_head.bias[3:5].data)
    model.save_pretrained(folder)
    for fault in ("refuse_uploads", "lose_commits"):
        setattr(hub, fault, True)
        with pytest.raises(
            ConnectionError, match=r"the connection to the Hub failed.*a commit is made as a whole or not at all"
        ):
            push_checkpoint(folder, NAME)
        setattr(hub, fault, False)
        assert hub.repositories[NAME].files == before
        assert len(hub.repositories[NAME].commits) == 2
    push_checkpoint(folder, NAME)
    assert hub.repositories[NAME].files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_an_interrupted_download_is_reported_and_continues_later(hub, folder, tmp_path, monkeypatch):
    expected = hf_bert4rec.pipeline(folder)(HISTORIES)
    push_checkpoint(folder, NAME)
    hub.cut_downloads = float("inf")
    with pytest.raises(ConnectionError, match="the connection to the Hub failed"):
        hf_bert4rec.pipeline(NAME)
    hub.cut_downloads = 0
    assert not [path for path in (tmp_path / "cache").rglob("snapshots/*/*") if not path.stat().st_size]
    go_offline(monkeypatch)
    with pytest.raises(OSError, match=r"nor a complete copy in the cache|found no"):
        hf_bert4rec.pipeline(NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert hf_bert4rec.pipeline(NAME)(HISTORIES) == expected


@needs("huggingface-hub", "1.26")
def test_a_connection_that_drops_now_and_then_only_costs_time(hub, folder, monkeypatch):
    push_checkpoint(folder, NAME)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # else it starts small files again
    hub.cut_downloads = 3
    assert hf_bert4rec.pipeline(NAME)(HISTORIES) == hf_bert4rec.pipeline(folder)(HISTORIES)


def test_a_wrong_token_is_named_as_the_cause(hub, folder, monkeypatch):
    push_checkpoint(folder, NAME)
    for attempt in (
        lambda: push_checkpoint(folder, NAME, token="hf_no"),
        lambda: hf_bert4rec.pipeline(NAME, token="hf_no"),
    ):
        with pytest.raises(PermissionError, match=r"the Hub received no valid token\. Run `hf auth login`"):
            attempt()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match=r"the Hub received no valid token\. Run `hf auth login`"):
        push_checkpoint(folder, f"{OWNER}/new")
    assert set(hub.repositories) == {NAME}


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (429, "We had to limit you.\nRetry after 9 s.", "answered 429 (We had to limit you. Retry after 9 s). "),
        (503, None, "answered 503. "),
        (400, "The name is long!", "answered 400 (The name is long). Fix this, then try again."),
    ],
)
def test_the_reason_of_the_hub_is_reported_in_one_line_with_a_solution(status, text, message):
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub"))
    with pytest.raises(OSError, match="^" + re.escape(f"a/b: the Hub {message}")) as error, hub_errors("a/b"):
        raise HfHubHTTPError("", response=response, server_message=text)
    assert str(error.value).endswith(". Try again later." if status != 400 else "then try again.")


def test_a_name_that_belongs_to_others_is_refused(hub, folder):
    with pytest.raises(PermissionError, match="the Hub denies access"):
        push_checkpoint(folder, "others/bert4rec")
    huggingface_hub.create_repo(NAME)
    huggingface_hub.upload_file(path_or_fileobj=b'{"model_type": "bert"}', path_in_repo="config.json", repo_id=NAME)
    with pytest.raises(
        FileExistsError, match="org/bert4rec-small is taken: the repository contains a model of type 'bert'"
    ):
        push_checkpoint(folder, NAME)
    assert hub.repositories[NAME].files == {"config.json": b'{"model_type": "bert"}'}
    huggingface_hub.create_repo(f"{OWNER}/images")
    huggingface_hub.upload_file(path_or_fileobj=b"{}", path_in_repo="model_index.json", repo_id=f"{OWNER}/images")
    with pytest.raises(
        FileExistsError, match=r"images is taken: the repository contains other files, such as model_index\.json"
    ):
        push_checkpoint(folder, f"{OWNER}/images")
    with pytest.raises(ValueError, match="no name"):
        push_checkpoint(folder, "no name/at all")


def test_a_gated_repository_is_named(hub, folder, monkeypatch):
    push_checkpoint(folder, NAME)
    monkeypatch.setattr(Handler, "readable", lambda *_: (_ for _ in ()).throw(Refused(403, "GatedRepo", "ask first")))
    with pytest.raises(PermissionError, match=r"org/bert4rec-small: the repository is gated\. Get access on its page"):
        hf_bert4rec.pipeline(NAME)


def test_a_card_that_the_hub_refuses_is_reported_and_nothing_is_uploaded(hub, folder):
    (folder / "README.md").write_text("---\nlicense: other\n---\n# Small\n")
    with pytest.raises(ValueError, match=r'Invalid metadata in README\.md\.\n- "license_name" is required'):
        push_checkpoint(folder, NAME)
    assert hub.repositories[NAME].files == {}
    assert not hub.objects


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_repository_that_lacks_a_file_is_refused(hub, folder, missing):
    push_checkpoint(folder, NAME)
    del hub.repositories[NAME].files[missing]
    with pytest.raises(FileNotFoundError, match=f"{NAME}: the checkpoint is incomplete, found no {missing}"):
        hf_bert4rec.pipeline(NAME)


def test_a_repository_with_a_pickle_alone_is_refused_and_not_downloaded(hub, folder):
    push_checkpoint(folder, NAME)
    hub.repositories[NAME].files["pytorch_model.bin"] = hub.repositories[NAME].files.pop("model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"a pickle can run code"):
        hf_bert4rec.pipeline(NAME)
    with pytest.raises(OSError, match=r"a pickle, which can run code"):
        AutoModel.from_pretrained(NAME)
    assert not [request for request in hub.requests if "resolve" in request and request.endswith(".bin")]


def test_a_revision_or_repository_that_does_not_exist_is_named(hub, folder):
    push_checkpoint(folder, NAME)
    with pytest.raises(FileNotFoundError, match="org/bert4rec-small: found no such revision"):
        hf_bert4rec.pipeline(NAME, revision="v9")
    with pytest.raises(FileNotFoundError, match=r"org/nothing: found no such folder, and no such repository"):
        hf_bert4rec.pipeline("org/nothing")


def push_script(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "push_to_hub.py"), str(folder), NAME, *options]
    return subprocess.run(command, capture_output=True, text=True, env=child_environment())


def test_the_script_pushes_and_prints_the_address(hub, folder):
    finished = push_script(folder, "--private")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == f"{hub.url}/{NAME}/commit/{commit_id(1)}"
    assert hub.repositories[NAME].private


def test_the_script_without_a_network_ends_in_one_sentence(folder):  # nobody listens where the Hub should be
    finished = push_script(folder)
    assert finished.returncode == 1
    assert finished.stderr.startswith("hf-bert4rec push: error: org/bert4rec-small: the connection to the Hub failed")
    assert len(finished.stderr.splitlines()) == 1


def test_pushing_while_the_client_is_set_to_be_offline_says_so(folder):
    with pytest.raises(ConnectionError, match=r"offline mode is on. Unset HF_HUB_OFFLINE"):
        push_checkpoint(folder, NAME)
