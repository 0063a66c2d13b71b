"""Compare recipes that differ in a few options, at equal steps, on validation: what helps, and how much is luck.

    python scripts/study.py run scripts/studies/mask-ratio-ml-1m.yaml scripts/results/mask-ratio.jsonl
    python scripts/study.py table scripts/results/mask-ratio.jsonl
    python scripts/study.py plot scripts/results/mask-ratio.jsonl scripts/results/mask-ratio.png --x mask_probability
    python scripts/study.py plot scripts/results/quality.jsonl scripts/results/quality.png --x minutes

A study is a YAML file: `recipe`, the configuration to start from; `options` that hold for all its variants; `seeds`;
and `variants`, each a name and the options that it changes, where `cumulative: true` adds them to those of the variants
before it. Each run appends one JSON line, and what has its line already is not run again, so that an interrupted study
goes on where it stopped; `--seeds` lets two processes share one. The test split is never looked at.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads make small models much slower

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from math import nan
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import transformers
import yaml
from matplotlib.figure import Figure
from transformers import TrainerCallback

from hf_bert4rec.ranking import ndcg_gains
from hf_bert4rec.recipe import Recipe, parse_recipe, plain_errors
from hf_bert4rec.run import prepare, trainer_for

MEASURE = "ndcg@10"


class Clock(TrainerCallback):
    """The curve of a run: step, seconds so far and validation NDCG@10 at each evaluation."""

    def __init__(self) -> None:
        self.curve: list[tuple[int, float, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Read the clock."""
        seconds = round(time.perf_counter() - self.started, 1)
        self.curve.append((state.global_step, seconds, round(metrics[f"eval_{MEASURE}"], 5)))
        print(
            f"  step {state.global_step:6d}   {seconds:6.0f} s   {MEASURE} {metrics[f'eval_{MEASURE}']:.4f}", flush=True
        )


def variants(study: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of each variant of a study."""
    options = dict(study.get("options", {}))
    for name, changes in study["variants"].items():
        here = {**options, **(changes or {})}
        if study.get("cumulative"):
            options = here
        yield name, here


def with_options(recipe: str, options: dict[str, Any], seed: int, folder: str) -> Recipe:
    """The recipe of a run, which saves nothing."""
    own = {"output_dir": folder, "seed": seed, "save_strategy": "no", "load_best_model_at_end": False}
    words = {**options, **own, "disable_tqdm": True}
    return parse_recipe([recipe, *(f"--{name}={value}" for name, value in words.items())])


def train(recipe: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train once, and judge on validation, all users and the halves with short and long histories."""
    folder = tempfile.mkdtemp()
    complete = with_options(recipe, options, seed, folder)
    _, tokenizer, histories = prepare(complete)
    trainer = trainer_for(complete, tokenizer, histories)
    trainer.remove_callback(transformers.PrinterCallback)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    lengths = np.array([len(history) for history in histories["validation"]["history"]])
    gains = ndcg_gains(trainer.predict(histories["validation"]).predictions, 10)
    short = lengths <= np.median(lengths)
    shutil.rmtree(folder)
    return {
        "curve": clock.curve,
        MEASURE: round(float(gains.mean()), 5),
        "short": round(float(gains[short].mean()), 5),
        "long": round(float(gains[~short].mean()), 5),
        "median_history": float(np.median(lengths)),
    }


def run(path: str, results: str, seeds: list[int] | None) -> None:
    """Run what has no line in `results` yet, and append its line."""
    study = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for seed in seeds or study["seeds"]:
        for name, options in variants(study):
            key = {"study": Path(path).stem, "variant": str(name), "seed": seed}
            if any(key.items() <= line.items() for line in load(results)):
                continue
            print(f"{key['study']}: {name}, seed {seed}", flush=True)
            line = {**key, "options": options, **train(study["recipe"], options, seed)}
            with Path(results).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def load(path: str) -> list[dict[str, Any]]:
    """The lines of a results file, none if there is no such file yet."""
    return list(map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())) if Path(path).exists() else []


def grouped(lines: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Study → variant → its lines, one a seed, in the order of the file."""
    studies: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in lines:
        studies.setdefault(line["study"], {}).setdefault(line["variant"], []).append(line)
    return studies


def table(lines: list[dict[str, Any]]) -> str:
    """A Markdown table a study: the mean over seeds, each seed, and the difference from the variant before."""
    text = []
    for study, rows in grouped(lines).items():
        text += [f"**{study}**", "", "| variant | NDCG@10 | gain | seeds | short | long | minutes |"]
        text += ["|---|---:|---:|---|---:|---:|---:|"]
        before, means = None, []
        for name, runs in rows.items():
            score = mean(run[MEASURE] for run in runs)
            gain = "" if before is None else f"{score - before:+.4f}"
            each = ", ".join(f"{run[MEASURE]:.4f}" for run in runs)
            halves = " | ".join(f"{mean(run.get(half, nan) for run in runs):.4f}" for half in ("short", "long"))
            minutes = mean(run["curve"][-1][1] for run in runs) / 60
            text.append(f"| {name} | {score:.4f} | {gain} | {each} | {halves} | {minutes:.1f} |")
            before = score
            means.append(score)
        text += ["", f"Median {median(means):.4f}, best {max(means):.4f}: {median(means) / max(means):.2f}.", ""]
    return "\n".join(text)


def plot(lines: list[dict[str, Any]], path: str, x: str) -> None:
    """NDCG@10 against minutes, a line a variant; or against an option, a line for all users and each half of them."""
    studies = grouped(lines)
    figure = Figure(figsize=(5.5 * len(studies), 4), layout="constrained")
    for axes, (study, rows) in zip(np.atleast_1d(figure.subplots(1, len(studies))), studies.items(), strict=True):
        if x == "minutes":
            for name, runs in rows.items():
                _, seconds, scores = np.array(runs[0]["curve"]).T
                axes.plot(seconds / 60, scores, marker=".", label=name)
        else:
            places = [float(runs[0]["options"][x]) for runs in rows.values()]
            halves = {MEASURE: "all users", "short": "shorter half of the histories", "long": "longer half"}
            for name, label in halves.items():
                axes.plot(places, [mean(run[name] for run in runs) for runs in rows.values()], marker="o", label=label)
        axes.set(title=study, xlabel=x, ylabel="validation NDCG@10", ylim=(0, None))
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    """What to do, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train what has no line yet")
    running.add_argument("study", help="YAML file of the study")
    running.add_argument("results", help="file of JSON lines to append to")
    running.add_argument("--seeds", type=int, nargs="+", help="instead of the study's")
    showing = commands.add_parser("table", help="print the Markdown tables")
    showing.add_argument("results")
    drawing = commands.add_parser("plot", help="draw a PNG")
    drawing.add_argument("results")
    drawing.add_argument("image")
    drawing.add_argument("--x", default="minutes", help="minutes, or an option that the variants differ in")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    transformers.logging.disable_progress_bar()
    with plain_errors():
        if args.command == "run":
            run(args.study, args.results, args.seeds)
        elif args.command == "table":
            print(table(load(args.results)))
        else:
            plot(load(args.results), args.image, args.x)
