"""Measure the speed and memory of training, recommending and evaluating, one JSON line per measurement.

    python scripts/benchmark.py train --data ml-1m.txt --length 200 --batch 256 --steps 10 >> results.jsonl
    python scripts/benchmark.py train --data synthetic-1m --length 50 --batch 128 --steps 3 --loss gbce >> results.jsonl
    python scripts/benchmark.py recommend --data ml-1m.txt --users 2000 --k 10 >> results.jsonl
    python scripts/benchmark.py evaluate --data ml-1m.txt --users 6040 --threads 2 >> results.jsonl
    python scripts/benchmark.py latency runs/mine/model --length 50 >> results.jsonl
    python scripts/benchmark.py table results.jsonl
    python scripts/benchmark.py scale scaling.jsonl     # over catalog, length, batch and threads: 20 minutes
    python scripts/benchmark.py plot scaling.jsonl scaling.png
    python scripts/benchmark.py memory memory.jsonl     # estimated and measured memory: 10 minutes

On a GPU:

    python scripts/benchmark.py train --data ml-1m.txt --device cuda --bf16 --compile --attention sdpa
    python scripts/benchmark.py train --data ml-1m.txt --device cuda --bf16 --compile --attention flex_attention
    python scripts/benchmark.py train --data ml-1m.txt --device cuda --bf16 --attention flash_attention_2

A step lasts from the end of one optimizer step to the end of the next. It contains loading, masking, collating, forward
pass, loss, backward pass and optimizer. Padding does not count as items. To compare packages, run them one
after the other on the same cores of one machine, and compare the ratios.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow down small models

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from transformers import AutoConfig, AutoModelForMaskedLM, Trainer, TrainerCallback, set_seed

import hf_bert4rec as package
from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.evaluation.trainer_evaluation import rank_rows
from hf_bert4rec.inference.answers import DEFAULT_BATCH_SIZE
from hf_bert4rec.models.item_loss import LOSSES
from hf_bert4rec.models.registry import ARCHITECTURES
from hf_bert4rec.training.resources import peak_memory

STARTED = time.perf_counter()
WARMUP = 3  # steps before the timed ones
SYNTHETIC = {"synthetic-10k": (10_000, 4_000), "synthetic-100k": (100_000, 10_000), "synthetic-1m": (1_000_000, 40_000)}
OURS = "hf-bert4rec"
USUAL = {
    "architecture": "bert4rec",
    "loss": None,
    "num_negatives": 256,
    "unshared": False,
    "gradient_checkpointing": False,
    "bf16": False,
    "compile": False,
    "attention": "sdpa",
    "device": "cpu",
}
"""Options and their defaults. A line contains only the options that have another value."""


# ------------------------------------------------------------------------------------------------------- measurements


def draw_histories(items: int, users: int, length: int, seed: int = 0) -> pa.Table:
    """Draw histories of `length` items by Zipf's law. Each item of the catalog occurs at least once."""
    generator = np.random.default_rng(seed)
    share = 1 / np.arange(1, items + 1)
    drawn = generator.choice(items, users * length - items, p=share / share.sum())
    actions = generator.permutation(np.concatenate([np.arange(items), drawn]))
    return pa.table(
        {
            "user": pa.array(np.repeat(np.arange(users), length)).cast(pa.string()),
            "item": pa.array(actions).cast(pa.string()),
            "timestamp": np.arange(len(actions)),
        }
    )


def load_data(args: argparse.Namespace) -> Dataset:
    """Return the interactions of `--data`: those of a file, or synthetic ones."""
    if args.data not in SYNTHETIC:
        return package.load_interactions(args.data)
    items, users = SYNTHETIC[args.data]
    return package.load_interactions(draw_histories(items, max(users, -(-items * 2 // args.length)), args.length))


def build_config(args: argparse.Namespace, rows: int) -> Any:
    """Return the configuration of all compared packages: feed-forward size 4 d, GELU, tied item table."""
    return AutoConfig.for_model(
        args.architecture,
        vocab_size=rows,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=4 * args.hidden,
        max_position_embeddings=args.length,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.attention_dropout,
        loss=args.loss or "softmax",
        num_negatives=args.num_negatives,
        share_negatives=not args.unshared,
        learned_positions=True,
        rope_theta=None,  # the other packages have neither rotary positions nor a convolution
        conv_kernel_size=None,
        prediction_head=args.architecture == "bert4rec",
    )


class StepTimer(TrainerCallback):
    """Record wall time, processor time and real items at the end of every optimizer step."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.items: Any = 0
        self.marks: list[tuple[float, float, int]] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: tuple, kwargs: dict) -> None:
        self.items = self.items + kwargs["attention_mask"].sum()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Record the end of a step."""
        items, self.items = int(self.items), 0  # waits for a GPU
        self.marks.append((time.perf_counter(), time.process_time(), items))

    def result(self) -> dict[str, Any]:
        """Return the medians over the timed steps, and the number of these steps."""
        steps = list(pairwise(self.marks[WARMUP - 1 :]))
        return {
            "seconds_per_step": round(statistics.median(b[0] - a[0] for a, b in steps), 4),
            "cpu_seconds_per_step": round(statistics.median(b[1] - a[1] for a, b in steps), 4),
            "items_per_second": round(statistics.median(b[2] / (b[0] - a[0]) for a, b in steps)),
            "seconds_to_first_step": round(self.marks[0][0] - STARTED, 1),
            "steps": len(steps),
        }


def count_operations(args: argparse.Namespace, items: int, lengths: np.ndarray) -> float:
    """Return the operations of matrix products per real item in training, which are those of three forward passes."""
    d, seen = args.hidden, (lengths**2).sum() / lengths.sum()  # positions that each position attends to
    project, attend, feed_forward = 2 * d * d, 4 * seen * d, 16 * d * d
    layer = 4 * project + attend + feed_forward
    scored = args.mask_prob * (2 * project + attend + feed_forward + project + 2 * items * d)
    return 3 * ((args.layers - 1) * layer + 2 * project + scored)


def measure_matrix_rate(args: argparse.Namespace) -> float:
    """Return the operations per second of the feed-forward product at the shape and precision of the run."""
    kind = torch.bfloat16 if args.bf16 else torch.float32
    positions = torch.randn(args.batch * args.length, args.hidden, dtype=kind)
    weights = torch.randn(4 * args.hidden, args.hidden, dtype=kind)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        positions @ weights.T
        seconds.append(time.perf_counter() - start)
    return 2 * positions.numel() * len(weights) / min(seconds)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Time training steps of the `Trainer` of transformers."""
    interactions = load_data(args)
    tokenizer = package.item_tokenizer(interactions, max_length=args.length)
    rows = package.leave_one_out(interactions, tokenizer)["train"]
    model = AutoModelForMaskedLM.from_config(build_config(args, len(tokenizer)), attn_implementation=args.attention)
    before, args.highest = resident_memory(), 0.0
    timer = StepTimer(model)
    more: dict[str, Any] = {"gradient_checkpointing": True} if args.gradient_checkpointing else {}
    with tempfile.TemporaryDirectory() as folder:
        settings = package.RecommendationTrainingArguments(
            folder,
            per_device_train_batch_size=args.batch,
            max_steps=WARMUP + args.steps,
            learning_rate=1e-3,
            eval_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=args.device == "cpu",
            bf16=args.bf16,
            torch_compile=args.compile,
            **more,
        )
        cloze = ARCHITECTURES[args.architecture].objective == "cloze"
        setup = (
            package.cloze_training(tokenizer, mask_probability=args.mask_prob)
            if cloze
            else package.next_item_training(tokenizer)
        )
        trainer = Trainer(model, settings, train_dataset=rows, **setup)
        trainer.add_callback(timer)
        trainer.train()
    longest, scored_share = max(rows["length"][:]), setup["data_collator"].scored_share
    estimate = package.estimate_memory(model, args.batch, longest, scored_share, args.gradient_checkpointing)
    taken = before + estimate.total - estimate.parameters if args.device == "cpu" else estimate.total
    result = timer.result() | {
        "steps_per_epoch": -(-len(rows) // args.batch),
        "rows": len(tokenizer),
        "longest": longest,
        "scored_share": scored_share,
        "before_gb": round(before, 3),
        "training_peak_gb": round(args.highest, 3),  # since the model was built, so without reading the data
        "estimated_peak_gb": round(taken, 3),
    }
    if cloze and args.device == "cpu" and (args.loss or "softmax") == "softmax":
        work = count_operations(args, len(tokenizer), np.array(rows["length"][:]))
        result |= {
            "mflop_an_item": round(work / 1e6, 2),
            "gflop_per_second": round(work * result["items_per_second"] / 1e9, 1),
            "matrix_gflop_per_second": round(measure_matrix_rate(args) / 1e9, 1),
        }
    return result


def recommend(args: argparse.Namespace) -> dict[str, Any]:
    """Time the pipeline, from IDs to titles, with an untrained model, which takes the same time."""
    interactions = load_data(args)
    titles = {item: f"Title of {item}" for item in set(interactions["item"])}
    tokenizer = package.item_tokenizer(interactions, titles=titles, max_length=args.length)
    model = AutoModelForMaskedLM.from_config(build_config(args, len(tokenizer)))
    recommender = package.NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device=args.device)
    table = interactions.with_format("arrow")[:].select(["user", "item"]).group_by("user", use_threads=False)
    histories = table.aggregate([("item", "list")])["item_list"].slice(0, args.users).to_pylist()

    def once() -> list:
        return recommender(histories, top_k=args.k, batch_size=args.batch)

    for history, found in zip(histories, once(), strict=True):
        items = {row["item"] for row in found}
        assert len(items) == args.k and not items & set(history), "expected `--k` items that are not in the history"
    wall, cpu = [], []
    for _ in range(args.repeats):
        marks = time.perf_counter(), time.process_time()
        once()
        wall.append(time.perf_counter() - marks[0])
        cpu.append(time.process_time() - marks[1])
    return {
        "users_per_second": round(len(histories) / statistics.median(wall), 1),
        "users_per_cpu_second": round(len(histories) / statistics.median(cpu), 1),
        "users": len(histories),
        "k": args.k,
        "includes": "the pipeline: raw IDs in, IDs, titles and scores out, history excluded",
    }


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Time the full ranking of test targets, histories excluded, by the `Trainer` of transformers."""
    interactions = load_data(args)
    tokenizer = package.item_tokenizer(interactions, max_length=args.length)
    rows = package.leave_one_out(interactions, tokenizer)["test"]
    rows = rows.select(range(min(args.users, len(rows))))
    model = AutoModelForMaskedLM.from_config(build_config(args, len(tokenizer)))
    wall = []
    with tempfile.TemporaryDirectory() as folder:
        settings = package.RecommendationTrainingArguments(
            folder, per_device_eval_batch_size=args.batch, disable_tqdm=True, use_cpu=args.device == "cpu"
        )
        trainer = Trainer(model, settings, eval_dataset=rows, **package.cloze_training(tokenizer))
        for _ in range(1 + args.repeats):
            mark = time.perf_counter()
            rank_rows(trainer, rows)
            wall.append(time.perf_counter() - mark)
    return {
        "users_per_second": round(rows.num_rows / statistics.median(wall[1:]), 1),
        "seconds": round(statistics.median(wall[1:]), 2),
        "users": rows.num_rows,
        "includes": "batches from the test rows, the model, its loss and the rank of each target in the catalog",
    }


def latency(args: argparse.Namespace) -> dict[str, Any]:
    """Time requests for one user, with histories that are drawn at random from the items of the model."""
    torch.set_num_threads(args.threads)
    start = time.process_time()
    if args.checkpoint in SYNTHETIC:
        tokenizer = package.item_tokenizer(map(str, range(SYNTHETIC[args.checkpoint][0])))
        model = package.Bert4RecForMaskedLM(package.Bert4RecConfig(vocab_size=len(tokenizer)))
        recommender = package.NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device=args.device)
    else:
        recommender = package.pipeline(args.checkpoint, device=args.device)
    loaded = time.process_time() - start
    items = recommender.tokenizer.items.to_pylist()
    generator = np.random.default_rng(0)
    wall, cpu = [], []
    for _ in range(WARMUP + args.requests):
        history = [items[place] for place in generator.integers(len(items), size=args.length)]
        marks = time.perf_counter(), time.process_time()
        recommender([history], top_k=args.k)
        wall.append(1000 * (time.perf_counter() - marks[0]))
        cpu.append(1000 * (time.process_time() - marks[1]))
    percentiles = [("median", 50), ("p99", 99)]
    return {
        "version": version(OURS),
        "torch": torch.__version__,
        "what": "latency",
        "checkpoint": Path(args.checkpoint).name,
        "items": len(items),
        "hidden": recommender.model.config.hidden_size,
        "length": args.length,
        "k": args.k,
        "requests": args.requests,
        "threads": args.threads,
        "device": args.device,
        **{f"cpu_ms_{name}": round(float(np.percentile(cpu[WARMUP:], q)), 2) for name, q in percentiles},
        **{f"ms_{name}": round(float(np.percentile(wall[WARMUP:], q)), 2) for name, q in percentiles},
        "cpu_seconds_to_load": round(loaded, 2),
        "peak_rss_gb": round(peak_memory(), 3),
    }


def resident_memory() -> float:
    """Return the resident memory in GB."""
    return psutil.Process().memory_info().rss / 1e9


def measure(args: argparse.Namespace) -> None:
    """Run one measurement and print its line, also if it is stopped because of `--max-gb`."""
    torch.set_num_threads(args.threads)
    set_seed(0)
    args.highest = 0.0
    line: dict[str, Any] = {
        "peer": OURS,
        "version": version(OURS),
        "torch": torch.__version__,
        "what": args.what,
        "data": Path(args.data).stem,
    }
    line |= {name: getattr(args, name) for name, value in USUAL.items() if getattr(args, name) != value}
    for name in ("hidden", "layers", "heads", "length", "batch", "mask_prob", "dropout", "attention_dropout"):
        line[name] = getattr(args, name)

    def finish(**result: Any) -> None:
        peak = peak_memory()
        if args.device == "cuda":
            result["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        print(json.dumps({**line, **result, "peak_rss_gb": round(peak, 3), "threads": args.threads}), flush=True)

    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            args.highest = max(args.highest, resident_memory())
            if args.highest > args.max_gb:
                finish(error=f"out of memory: stopped at {args.highest:.1f} GB")
                os._exit(3)

    threading.Thread(target=watch, daemon=True).start()
    finish(**{"train": train, "recommend": recommend, "evaluate": evaluate}[args.what](args))
    done.set()


# ------------------------------------------------------------------------------------------------- tables and plots


def load_lines(path: str) -> list[dict[str, Any]]:
    """Read a file of measurements."""
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.startswith('{"')]


def has_processor_time(line: dict[str, Any]) -> bool:
    """Return whether a line contains processor seconds on one thread of a CPU, which replace wall time in tables."""
    recorded = "users_per_cpu_second" in line or "cpu_seconds_per_step" in line
    return recorded and line["threads"] == 1 and line.get("device", "cpu") == "cpu"


def use_processor_time(line: dict[str, Any]) -> dict[str, Any]:
    """Return a measurement on one thread with its speed per processor second, which excludes other work on the core."""
    if not has_processor_time(line):
        return line
    speeds = {"users_per_second": line["users_per_cpu_second"]} if "users_per_cpu_second" in line else {}
    if "cpu_seconds_per_step" in line:
        stolen = line["seconds_per_step"] / line["cpu_seconds_per_step"]
        speeds["items_per_second"] = line["items_per_second"] * stolen
    return line | speeds


def format_tables(lines: Iterable[dict[str, Any]]) -> str:
    """Return Markdown: one table per setting, one row per package with the medians of its measurements."""
    repeats: dict[tuple, list[dict[str, Any]]] = {}
    for line in map(use_processor_time, lines):
        repeats.setdefault(tuple(line.get(name) for name in (*SETTING, "peer", "batch", *CHOICES)), []).append(line)
    settings: dict[tuple, list[dict[str, Any]]] = {}
    for same in repeats.values():
        numbers = {name: [line[name] for line in same if name in line] for name in MEDIANS}
        medians = {name: statistics.median(values) for name, values in numbers.items() if values}
        row = same[0] | medians
        setting = *(row.get(name) for name in SETTING), row["batch"] if row["what"] == "train" else None
        settings.setdefault(setting, []).append(row)
    parts = []
    for rows in settings.values():
        first = rows[0]
        speed = "items_per_second" if first["what"] == "train" else "users_per_second"
        unit = speed.replace("_per_second", "/s")
        plain = (row for row in rows if row["peer"] == OURS and speed in row and not any(map(row.get, CHOICES)))
        ours = next(plain, None)
        shape = ", ".join(f"{name} {first[name]}" for name in SETTING[4:] if name in first)
        threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
        clock = ", by processor seconds" if any(map(has_processor_time, rows)) else ""
        parts.append(f"\n**{first['what']}, {first['data']}**, length {first['length']}, {shape}, {threads}{clock}\n")
        parts.append(f"| | batch | {unit} | ours / this | peak GB | ours / this |\n|---|---:|---:|---:|---:|---:|")
        for row in sorted(rows, key=lambda row: -row.get(speed, 0)):
            marks = [row.get(name) for name in NAMED]
            marks += [name for name in FLAGS if row.get(name)]
            name = " ".join(filter(None, [row["peer"], *marks]))
            if speed not in row:
                parts.append(f"| {name} | {row['batch']} | {row.get('error', '')} | | {row['peak_rss_gb']:.1f} | |")
                continue
            faster = f"{ours[speed] / row[speed]:.1f} ×" if ours else ""
            smaller = f"{ours['peak_rss_gb'] / row['peak_rss_gb']:.2f} ×" if ours else ""
            parts.append(
                f"| {name} | {row['batch']} | {row[speed]:,.0f} | {faster} | {row['peak_rss_gb']:.2f} | {smaller} |"
            )
    return "\n".join(parts)


SETTING = ("what", "data", "length", "threads", "hidden", "layers", "heads", "mask_prob", "device")
"""Options that are the same for all rows of a table."""

NAMED = ("architecture", "loss", "attention")
"""Options whose values are part of the name of a row."""

FLAGS = ("unshared", "gradient_checkpointing", "bf16", "compile", "attention_dropout")
"""Options whose names are part of the name of a row if they are set."""

CHOICES = (*NAMED, *FLAGS, "num_negatives")
"""Options that, with peer and batch, distinguish the rows of a table."""

MEDIANS = ("items_per_second", "users_per_second", "peak_rss_gb")
SCALES: dict[str, list[dict[str, Any]]] = {
    "catalogue": [  # spelled as in the kept results
        {"data": data, "length": 50, "batch": 128, "loss": loss, "steps": steps}
        for loss in ("softmax", "sampled_softmax")
        for data, steps in (("synthetic-10k", 10), ("synthetic-100k", 5), ("synthetic-1m", 3))
    ],
    "length": [{"data": "synthetic-10k", "length": n, "batch": 6400 // n, "steps": 10} for n in (50, 200, 800)],
    "batch": [{"data": "synthetic-10k", "length": 50, "batch": n, "steps": 10} for n in (32, 128, 512)],
    "threads": [{"data": "synthetic-10k", "length": 50, "batch": 128, "threads": n, "steps": 10} for n in (1, 2)],
}


MEMORY: list[dict[str, Any]] = [
    {"batch": 256},
    {"batch": 128, "layers": 6},
    {"batch": 128, "layers": 6, "gradient-checkpointing": True},
    {"batch": 128, "layers": 12, "gradient-checkpointing": True},
    {"batch": 32, "length": 800},
    {"batch": 64, "hidden": 256, "heads": 4},
    {"batch": 64, "layers": 4, "attention": "eager"},
    {"batch": 64, "layers": 4, "attention-dropout": 0.2},
    {"batch": 128, "architecture": "sasrec"},
    {"batch": 128, "architecture": "gru4rec", "layers": 3},
    {"batch": 128, "architecture": "gru4rec", "layers": 1, "hidden": 128},
    {"batch": 128, "loss": "bce", "num-negatives": 64, "unshared": True},
    {"batch": 128, "loss": "gbce", "num-negatives": 2000},
    {"batch": 128, "length": 50, "data": "synthetic-100k"},
    {"batch": 128, "length": 50, "data": "synthetic-1m", "steps": 1},
    {"batch": 128, "length": 50, "data": "synthetic-1m", "loss": "sampled_softmax"},
]
"""Models whose memory is compared with the estimate (tests/training/test_resources.py)."""


def run_all(settings: Iterable[dict[str, Any]], path: str, **marks: str) -> None:
    """Measure each setting in its own process and append its line, with `marks`."""
    for setting in settings:
        options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in setting.items()]
        run = subprocess.run([sys.executable, __file__, "train", *options], capture_output=True, text=True)
        line = next((line for line in run.stdout.splitlines() if line.startswith('{"')), None)
        if line is None:
            raise SystemExit(run.stderr)
        with Path(path).open("a") as file:
            file.write(json.dumps({**marks, **json.loads(line)}) + "\n")
        print(line, flush=True)


def plot(lines: list[dict[str, Any]], path: str) -> str:
    """Plot seconds per step and peak memory along each axis of `SCALES`; return the exponents of fitted power laws."""
    sizes = {name: items for name, (items, _) in SYNTHETIC.items()}
    figure = Figure(figsize=(14, 6.5), layout="constrained")
    axes = figure.subplots(2, len(SCALES))
    fitted = ["| | exponent of seconds per step | peak memory (GB) |", "|---|---:|---|"]
    for column, axis in enumerate(SCALES):
        for loss in ("softmax", "sampled_softmax"):
            measured: dict[int, list[tuple[float, float]]] = {}
            for row in lines:
                if row["axis"] == axis and row.get("loss", "softmax") == loss and "seconds_per_step" in row:
                    size = sizes[row["data"]] if axis == "catalogue" else row[axis]
                    measured.setdefault(size, []).append((row["seconds_per_step"], row["peak_rss_gb"]))
            if not measured:
                continue
            x = np.array(sorted(measured), float)
            seconds, peak = np.array([np.median(measured[size], axis=0) for size in sorted(measured)]).T
            exponent = np.polyfit(np.log(x), np.log(seconds), 1)[0]
            axes[0, column].plot(x, seconds, "o-", label=f"{loss}: exponent {exponent:.2f}")
            axes[1, column].plot(x, peak, "o-", label=loss)
            for panel in axes[:, column]:
                panel.set_xscale("log")
                panel.set_xticks(x, [f"{size:g}" for size in x])
                panel.set_xticks([], minor=True)
            fitted.append(f"| {axis}, {loss} | {exponent:.2f} | {', '.join(f'{value:.2f}' for value in peak)} |")
        axes[0, column].set(title=axis, ylabel="seconds per step")
        if axis == "catalogue":
            axes[0, column].set_yscale("log")
        else:
            axes[0, column].set_ylim(0, None)
        axes[0, column].legend()
        axes[1, column].set(xlabel=axis, ylabel="peak memory (GB)", ylim=(0, None))
    figure.savefig(path, dpi=100)
    return "\n".join(fitted)


# --------------------------------------------------------------------------------------------------- command line


def parse_arguments() -> argparse.Namespace:
    """Parse the command line. The options of train and recommend are the same for all compared packages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for what in ("train", "recommend", "evaluate"):
        command = commands.add_parser(what, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.add_argument("--data", required=True, help=f"log of interactions, or {', '.join(SYNTHETIC)}")
        command.add_argument("--hidden", type=int, default=64, help="hidden size")
        command.add_argument("--layers", type=int, default=2, help="number of layers")
        command.add_argument("--heads", type=int, default=2, help="attention heads per layer")
        command.add_argument("--length", type=int, default=200, help="longest input, including the [MASK]")
        batch = DEFAULT_BATCH_SIZE if what == "recommend" else 256
        command.add_argument("--batch", type=int, default=batch, help="rows per batch")
        command.add_argument("--mask-prob", type=float, default=0.2, help="share of masked items")
        command.add_argument("--threads", type=int, default=1, help="threads of torch")
        command.add_argument("--max-gb", type=float, default=16.0, help="stop above this resident memory in GB")
        command.add_argument("--dropout", type=float, default=0.1, help="dropout of hidden states")
        command.add_argument("--attention-dropout", type=float, default=0.0, help="dropout of attention")
        command.add_argument("--device", default="cpu", help="device of torch")
        command.add_argument("--architecture", choices=tuple(ARCHITECTURES), default="bert4rec", help="model")
        command.set_defaults(**{name: USUAL[name] for name in USUAL if name not in ("device", "architecture")})
        if what == "train":
            command.add_argument("--steps", type=int, default=30, help=f"timed steps, after {WARMUP} to warm up")
            command.add_argument("--loss", choices=LOSSES, default=argparse.SUPPRESS, help="default: softmax")
            command.add_argument("--num-negatives", type=int, default=256, help="negatives of a sampled loss")
            command.add_argument("--unshared", action="store_true", help="draw negatives per position, not per batch")
            command.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
            command.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
            command.add_argument("--attention", default="sdpa", help="`attn_implementation` of transformers")
            command.add_argument("--compile", action="store_true", help="train with torch.compile")
        else:
            command.add_argument("--users", type=int, default=2000, help="number of users")
            command.add_argument("--repeats", type=int, default=3, help="timed passes, after one to warm up")
        if what == "recommend":
            command.add_argument("--k", type=int, default=10, help="recommended items")
    command = commands.add_parser("latency", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    command.add_argument("checkpoint", help=f"folder or Hub ID, or {', '.join(SYNTHETIC)} (untrained)")
    command.add_argument("--length", type=int, default=50, help="items of a history")
    command.add_argument("--k", type=int, default=10, help="recommended items")
    command.add_argument("--requests", type=int, default=200, help=f"timed requests, after {WARMUP} to warm up")
    command.add_argument("--threads", type=int, default=1, help="threads of torch")
    command.add_argument("--device", default="cpu", help="device of torch")
    commands.add_parser("table").add_argument("results", nargs="+", help="files of measurements to read")
    commands.add_parser("scale").add_argument("results", help="file to which the measurements are appended")
    commands.add_parser("memory").add_argument("results", help="file to which the measurements are appended")
    command = commands.add_parser("plot")
    command.add_argument("results", help="file that `scale` has written")
    command.add_argument("png", help="picture to write")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()
    with plain_errors():
        if getattr(args, "device", "cpu") == "cuda" and not torch.cuda.is_available():
            raise ValueError("`--device cuda` needs a GPU, but torch finds none. Use `--device cpu`.")
        if args.what == "table":
            print(format_tables(line for path in args.results for line in load_lines(path)))
        elif args.what == "scale":
            for axis, settings in SCALES.items():
                run_all(settings, args.results, axis=axis)
        elif args.what == "memory":
            run_all(({"data": "synthetic-10k", "steps": 2, **setting} for setting in MEMORY), args.results)
        elif args.what == "latency":
            print(json.dumps(latency(args)))
        elif args.what == "plot":
            print(plot(load_lines(args.results), args.png))
        else:
            measure(args)
