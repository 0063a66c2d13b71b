"""Measure serving, export, index and batch on one core each, one JSON line per measurement.

    python scripts/production.py serve model_cards/bert4rec-ml1m ml-1m.txt --item_ids items.tsv >> results.jsonl
    python scripts/production.py serve synthetic-100000 ml-1m.txt --rates 50 >> results.jsonl
    python scripts/production.py soak MODEL ml-1m.txt --item_ids items.tsv --rates 360 --seconds 1800
    python scripts/production.py export model_cards/bert4rec-ml1m ml-1m.txt --item_ids items.tsv >> results.jsonl
    python scripts/production.py index model_cards/bert4rec-beauty beauty.txt >> results.jsonl
    python scripts/production.py index synthetic-1000000 ml-1m.txt >> results.jsonl
    python scripts/production.py batch model_cards/bert4rec-ml1m ml-1m.txt --item_ids items.tsv >> results.jsonl

The load comes from wrk, which must be installed. `serve` and `soak` run the server on the first core and wrk on the
second. With `--rates`, requests arrive at random times (Poisson) at each rate per second: each of 50 connections waits
a random time before its next request. Without `--rates`, 1, 8 and 64 connections send one request after the other,
which shows the most requests per second. A history has the newest 200 items of a user of the log, without the last one.
A model named `synthetic-N` is untrained and has N items.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # must be set before torch is imported

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer

import hf_bert4rec
from hf_bert4rec import Bert4RecConfig, Bert4RecForMaskedLM, item_tokenizer, load_interactions, rename_items
from hf_bert4rec.data.item_tables import load_item_ids
from hf_bert4rec.inference.batch import recommend_to_parquet
from hf_bert4rec.inference.export import OnnxRecommender, export_checkpoint

MOST_IN_A_GRAPH = 500_000  # building a graph of a million items takes more than 20 minutes on one core
PORT, CONNECTIONS, LONGEST = 8765, 50, 200
SERVER = (
    "import sys; from hf_bert4rec.inference import service, serving; service.MAX_BATCH = int(sys.argv[2]); "
    f"serving.serve(sys.argv[1], port={PORT})"
)
CLIENT = """
local bodies = {%s}
local n = 0
function init(args) math.randomseed(os.time()) end
function request()
  n = math.random(#bodies)
  return wrk.format("POST", "/recommend", {["Content-Type"] = "application/json"}, bodies[n])
end
%s
"""
WAIT = "function delay() return -math.log(1 - math.random()) * %f end"  # milliseconds


def read_histories(args: argparse.Namespace, number: int, model: Path) -> list[list[str]]:
    """Return `number` histories of random users of the log, oldest item first; users repeat if there are fewer.

    ValueError if the model lacks an item of the log, because unknown items need more time.
    """
    log = load_interactions(str(args.data))
    if args.item_ids:
        log = rename_items(log, load_item_ids(args.item_ids))
    missing = set(log.unique("item")).difference(AutoTokenizer.from_pretrained(model).items.to_pylist())
    if missing:
        found = f"{model} lacks {len(missing)} items of {args.data}, such as {min(missing)!r}"
        raise ValueError(f"{found}. Pass the log of the model, and its `--item_ids` if the log numbers the items.")
    table = log.to_pandas().sort_values("timestamp", kind="stable")
    histories = [items[:-1][-LONGEST:].tolist() for _, items in table.groupby("user")["item"]]
    random.Random(0).shuffle(histories)
    return (histories * (1 + number // len(histories)))[:number]


def checkpoint(name: str, folder: Path) -> Path:
    """Return a checkpoint folder: `name`, or `folder` with a new model for the name `synthetic-N`."""
    if not name.startswith("synthetic-"):
        return Path(name)
    tokenizer = item_tokenizer(list(range(1, 1 + int(name.removeprefix("synthetic-")))), max_length=LONGEST)
    torch.manual_seed(0)
    Bert4RecForMaskedLM(Bert4RecConfig(vocab_size=len(tokenizer), max_position_embeddings=LONGEST)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def served(folder: Path, batch: int) -> Iterator[psutil.Process]:
    """Serve an exported folder on the first core, with batches of at most `batch` histories; yield the process."""
    command = ["taskset", "-c", "0", sys.executable, "-c", SERVER, str(folder), str(batch)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            while subprocess.run(["curl", "-s", f"http://127.0.0.1:{PORT}/ready"], capture_output=True).returncode:
                if server.poll() is not None:
                    raise RuntimeError(f"The server has ended. Run `hf-bert4rec serve MODEL --port {PORT}` to see why.")
                time.sleep(0.2)
            yield psutil.Process(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)


def send(histories: list[list[str]], connections: int, seconds: int, rate: float | None = None) -> dict[str, Any]:
    """Send requests from the second core, and return what wrk measures."""
    bodies = ",\n".join(f"'{json.dumps({'histories': [history]})}'" for history in histories)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(CLIENT % (bodies, WAIT % (1000 * connections / rate) if rate else ""))
        script.flush()
        words = ["taskset", "-c", "1", "wrk", "-t1", "--latency", "-s", script.name]
        words += [f"-c{connections}", f"-d{seconds}s", f"http://127.0.0.1:{PORT}/"]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    unit = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    percentiles = re.findall(r"(50|90|99)%\s+([\d.]+)(us|ms|s)", text)
    found: dict[str, Any] = {f"p{name} ms": round(float(value) * unit[of], 2) for name, value, of in percentiles}
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    per_second = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert per_second, text
    return {"per second": round(float(per_second[1]), 1), **found, "errors": int(errors[1]) if errors else 0}


def serve(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Time requests: at each rate, or as many as possible, with and without batches."""
    source = checkpoint(args.model, folder / "model")
    histories = read_histories(args, 1000, source)
    exported = export_checkpoint(source, folder / "onnx")
    torch.set_num_threads(1)
    pipeline = hf_bert4rec.pipeline(source)
    seconds = time_calls(lambda: [pipeline([history]) for history in histories[:200]])
    yield {"what": "pipeline, one call per request", "per second": round(200 / seconds, 1)}
    for batch in (32, 1):
        with served(exported, batch):
            send(histories, 1, 3)
            for rate in args.rates:
                yield {"batch": batch, "rate": rate, **send(histories, CONNECTIONS, args.seconds, rate)}
            for connections in () if args.rates else (1, 8, 64):
                yield {"batch": batch, "connections": connections, **send(histories, connections, args.seconds)}


def soak(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Send requests for a long time; report memory at each tenth of it."""
    source = checkpoint(args.model, folder / "model")
    histories = read_histories(args, 1000, source)
    exported = export_checkpoint(source, folder / "onnx")
    with served(exported, 32) as server:
        for part in range(10):
            found = send(histories, CONNECTIONS, args.seconds // 10, args.rates[0])
            memory = round(server.memory_info().rss / 2**20)
            yield {"part": part + 1, "rate": args.rates[0], **found, "resident MB": memory}


def export(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Compare onnxruntime with torch on one core: items, scores and time."""
    torch.set_num_threads(1)
    source = checkpoint(args.model, folder / "model")
    onnx, pipeline = OnnxRecommender(export_checkpoint(source, folder / "onnx"), 1), hf_bert4rec.pipeline(source)
    histories = read_histories(args, 10_000, source)
    expected, answers = pipeline(histories), onnx(histories)
    pairs = [(one, other) for pair in zip(expected, answers, strict=True) for one, other in zip(*pair, strict=True)]
    different = [abs(one["score"] - other["score"]) for one, other in pairs if one["item"] != other["item"]]
    yield {
        "histories": len(histories),
        "places with another item": len(different),
        "largest difference of scores there": max(different, default=0.0),
        "largest difference of scores": max(abs(one["score"] - other["score"]) for one, other in pairs),
    }
    for users in (1, 64):
        batches = [histories[start : start + users] for start in range(0, 640, users)]
        for name, recommender in (("torch", pipeline), ("onnxruntime", onnx)):
            seconds = time_calls(lambda: [recommender(batch) for batch in batches])  # noqa: B023
            yield {"engine": name, "users": users, "ms per call": round(1000 * seconds / len(batches), 2)}


def index(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Compare candidates from an index with exact search, on one core."""
    import faiss
    from usearch.index import Index

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    source = checkpoint(args.model, folder)
    pipeline = hf_bert4rec.pipeline(source)
    items = len(pipeline.tokenizer.items)
    histories = read_histories(args, 256, source)
    if args.model.startswith("synthetic-"):
        histories = draw_tastes(pipeline.model, items, 256)
    vectors = pipeline.index_vectors()
    exact = pipeline(histories[:256])
    seconds = time_calls(lambda: pipeline(histories[:256]))
    yield {"items": items, "index": "none", "users per second": round(256 / seconds, 1), "recall@10": 1.0}
    cells, width = int(4 * items**0.5), vectors.shape[1]
    graphs = [("usearch", 128), ("usearch", 512)] if items < MOST_IN_A_GRAPH else []
    lists = [(kind, cells // part) for kind in ("faiss IVF", "faiss IVF 4 bits") for part in (32, 8, 4)]
    for name, expansion in graphs + lists:
        start = time.process_time()
        if name == "usearch":
            built: Any = Index(ndim=width, metric="ip", dtype="f32", expansion_search=expansion)
            built.add(np.arange(items), vectors, threads=1)
        else:
            built = faiss.index_factory(width, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
            if "4 bits" in name:
                # With 4 bits per number, a cell is searched faster. The best ten times as many are compared in float32.
                built = faiss.index_factory(width, f"IVF{cells},PQ{width}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
                refined: Any = faiss.downcast_index(built)
                refined.k_factor = 10
            built.train(vectors[:: max(1, items // (40 * cells))])
            built.add(vectors)
            faiss.extract_index_ivf(built).nprobe = expansion
        build = time.process_time() - start
        answers = pipeline(histories[:256], index=built)
        hits = [
            len({row["item"] for row in one} & {row["item"] for row in other}) / 10
            for one, other in zip(exact, answers, strict=True)
        ]
        seconds = time_calls(lambda: pipeline(histories[:256], index=built))  # noqa: B023
        line = {"items": items, "index": f"{name}, {expansion}", "users per second": round(256 / seconds, 1)}
        yield {**line, "recall@10": round(float(np.mean(hits)), 4), "seconds to build": round(build, 1)}


@torch.no_grad()
def draw_tastes(model: Bert4RecForMaskedLM, items: int, users: int) -> list[list[str]]:
    """Give an untrained model item vectors in clusters of a hundred; return histories from three clusters each."""
    generator = torch.Generator().manual_seed(0)
    width, clusters = model.config.hidden_size, items // 100
    centers = torch.randn(clusters, width, generator=generator)
    table = model.get_input_embeddings().weight
    of = torch.arange(items) % clusters
    table[-items:] = (centers[of] + torch.randn(items, width, generator=generator)) * 0.15
    model.get_output_embeddings().bias[-items:] = torch.randn(items, generator=generator)
    draw = random.Random(0)
    tastes = [[draw.randrange(clusters) for _ in range(3)] for _ in range(users)]
    return [[str(1 + draw.choice(of) + clusters * draw.randrange(99)) for _ in range(50)] for of in tastes]


def batch(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Time the batch command with one and two processes, from their first files on, with and without an export."""
    source = checkpoint(args.model, folder / "model")
    histories = read_histories(args, args.users, source)
    pq.write_table(pa.table({"user": range(len(histories)), "history": histories}), folder / "histories.parquet")
    for engine, model in (("torch", source), ("onnxruntime", export_checkpoint(source, folder / "onnx"))):
        for processes in (1, 2):
            os.sched_setaffinity(0, {0} if processes == 1 else {0, 1})
            torch.set_num_threads(1)
            output = folder / f"{engine}-{processes}"
            start = time.time()
            recommend_to_parquet(model, folder / "histories.parquet", output, processes=processes, shard_size=2000)
            ends = sorted(path.stat().st_mtime for path in output.glob("part-*"))
            users = len(histories) - processes * 2000
            yield {
                "engine": engine,
                "processes": processes,
                "users per second": round(users / (ends[-1] - ends[processes - 1]), 1),
                "seconds to the first file": round(ends[0] - start, 1),
            }


def time_calls(call: Callable[[], object]) -> float:
    """Return the processor seconds of the second call."""
    call()
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Measure, and print a line for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("serve", "soak", "export", "index", "batch"), help="what to measure")
    parser.add_argument("model", help="checkpoint folder, or synthetic-N")
    parser.add_argument("data", type=Path, help="log of interactions, from which the histories are taken")
    parser.add_argument("--item_ids", help="table with the IDs of the log and those of the model, as in a recipe")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="requests per second (default: no limit)")
    parser.add_argument("--seconds", type=int, default=20, help="seconds of each measurement, or of all of soak (20)")
    parser.add_argument("--users", type=int, default=20_000, help="number of users for batch (20,000)")
    args = parser.parse_args()
    if args.what == "soak" and not args.rates:
        parser.error("soak needs a rate. Pass `--rates`.")
    with tempfile.TemporaryDirectory() as folder:
        for line in globals()[args.what](args, Path(folder)):
            print(json.dumps({"measured": args.what, "model": Path(args.model).name, **line}), flush=True)


if __name__ == "__main__":
    main()
