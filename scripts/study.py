"""Compare recipes that differ in a few options, with the same number of steps, on the validation split.

    python scripts/study.py run scripts/studies/mask-ratio-ml-1m.yaml scripts/results/mask-ratio-ml-1m.jsonl
    python scripts/study.py table scripts/results/mask-ratio-ml-1m.jsonl
    python scripts/study.py plot scripts/results/mask-ratio-ml-1m.jsonl mask-ratio.png --x mask_probability
    python scripts/study.py plot scripts/results/quality.jsonl quality.png --x minutes

A study is a YAML file:

- `recipe`: path of the recipe to start from;
- `seeds`: a list of seeds;
- `variants`: name -> options that differ from the recipe, or nothing for the recipe itself;
- `options`: options for all variants (optional);
- `cumulative`: true adds the options of each variant to those of the variants before it (optional).

Each run appends one JSON line to the results. Runs that have a line are skipped, so that an interrupted study can be
resumed. Two processes can share a study and its results if each has its own `--seeds` and its own core. The test split
is not used. Seconds are those of training, without the evaluations.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow down small models

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from math import nan
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from transformers import TrainerCallback

from hf_bert4rec.cli.comparison_options import recipe_words
from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.cli.prepare import prepare
from hf_bert4rec.cli.recipe import Recipe, parse_recipe
from hf_bert4rec.cli.report import EpochLines
from hf_bert4rec.cli.trainers import build_trainer
from hf_bert4rec.cli.yaml_files import read_yaml
from hf_bert4rec.evaluation.ranking import ndcg_gains
from hf_bert4rec.evaluation.trainer_evaluation import rank_rows
from hf_bert4rec.hub.model_card import markdown_table

MEASURE = "ndcg@10"
KEYS: dict[str, tuple[type, str]] = {
    "recipe": (str, "a path"),
    "seeds": (list, "a list with at least one seed"),
    "variants": (dict, "lines of `name: options`, at least one"),
    "options": (dict, "lines of `option: value`"),
    "cumulative": (bool, "true or false"),
}
"""Type of each key of a study, and a text that describes it."""


class CurveCallback(TrainerCallback):
    """Record step, seconds of training and validation NDCG@10 at each evaluation."""

    def __init__(self) -> None:
        self.curve: list[tuple[int, float, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Add a point; the time of the evaluation itself does not count."""
        self.started += metrics["eval_runtime"]
        seconds, score = round(time.perf_counter() - self.started, 1), metrics[f"eval_{MEASURE}"]
        self.curve.append((state.global_step, seconds, round(score, 5)))
        print(f"  step {state.global_step:6d}   {seconds:6.0f} s   {MEASURE} {score:.4f}", flush=True)


def load_study(path: str) -> dict[str, Any]:
    """Read and check a study.

    Raises:
        ValueError: The file does not exist or is not a study.
    """
    advice = "`python scripts/study.py --help` describes this file."
    study = read_yaml(path, "the YAML file of a study", advice)
    if not {"recipe", "seeds", "variants"} <= set(study) <= set(KEYS):
        found = ", ".join(f"`{name}`" for name in study)
        expected = "the keys `recipe`, `seeds` and `variants`, and optionally `options` and `cumulative`"
        raise ValueError(f"{path}: expected {expected}, found {found or 'no keys'}. {advice}")
    for name, value in study.items():
        kind, expected = KEYS[name]
        if not isinstance(value, kind) or (not value and name in ("seeds", "variants")):
            raise ValueError(f"{path}: `{name}` must be {expected}, found {value!r}. {advice}")
    for name, value in study["variants"].items():
        if not isinstance(value, dict | None):
            found = f"found {value!r}. {advice}"
            raise ValueError(f"{path}: the variant {name!r} must be lines of `option: value`, {found}")
    return study


def iterate_variants(study: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and options of each variant of a study."""
    options = dict(study.get("options", {}))
    for name, changes in study["variants"].items():
        variant = {**options, **(changes or {})}
        if study.get("cumulative"):
            options = variant
        yield str(name), variant


def build_recipe(recipe: str, options: dict[str, Any], seed: int, folder: str) -> Recipe:
    """Return the recipe of a run that saves nothing and only ranks the whole catalog.

    Raises:
        ValueError: The recipe cannot be read, or has no validation split or no evaluations.
    """
    fixed = {
        "seed": seed,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "early_stopping_patience": None,
        "popularity_candidates": 0,
        "uniform_candidates": 0,
    }
    complete = parse_recipe(recipe_words({"recipe": recipe, **options, **fixed}, folder))
    without = complete.splitting.validation_in_train or complete.run.split == "train_on_all"
    if without or complete.training.eval_strategy == "no":
        advice = "Use `split: leave_one_out`, `validation_in_train: false` and `eval_strategy: epoch`."
        raise ValueError(f"{recipe}: a study needs a validation split and evaluations. {advice}")
    return complete


def train(recipe: Recipe) -> dict[str, Any]:
    """Train once and return NDCG@10 on validation: of all users, and of the halves with short and long histories."""
    recipe, _, tokenizer, histories = prepare(recipe)
    trainer = build_trainer(recipe, tokenizer, histories)
    trainer.remove_callback(EpochLines)
    curve = CurveCallback()
    trainer.add_callback(curve)
    trainer.train()
    lengths = np.array([len(history) for history in histories["validation"]["history"]])
    gains = ndcg_gains(rank_rows(trainer, histories["validation"]), 10)
    short = lengths <= np.median(lengths)
    means = {MEASURE: gains.mean(), "standard_error": gains.std() / len(gains) ** 0.5, "short": gains[short].mean()}
    if not short.all():
        means["long"] = gains[~short].mean()
    return {
        "curve": curve.curve,
        **{name: round(float(value), 5) for name, value in means.items()},
        "median_history": float(np.median(lengths)),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("hf-bert4rec", "transformers", "torch")},
    }


def run(path: str, results: str, seeds: list[int] | None, threads: int) -> None:
    """Train the variants that have no line in `results` yet. All options are checked before the first training.

    Raises:
        ValueError: The study is invalid, or a line of the same variant and seed has other options.
        OSError: `results` cannot be written.
    """
    torch.set_num_threads(threads)
    study, lines = load_study(path), load_lines(results)
    runs: list[tuple[dict[str, Any], Recipe]] = []
    with tempfile.TemporaryDirectory() as folder, Path(results).open("a", encoding="utf-8") as file:
        for seed in seeds or study["seeds"]:
            for name, options in iterate_variants(study):
                recipe = build_recipe(study["recipe"], options, seed, f"{folder}/{len(runs)}")
                key = {"study": Path(path).stem, "variant": name, "seed": seed}
                same = [line for line in lines if key.items() <= line.items()]
                given = {option: value for option, value in recipe.given.items() if option != "output_dir"}
                different = sorted({option for line in same for option in _different(line["options"], given)})
                if different:
                    found = f"{results} has a run of the variant {name!r} with seed {seed} and other options"
                    found += f" ({', '.join(different)})"
                    raise ValueError(f"{found}. Rename the variant, or name another file for the results.")
                if not same:
                    runs.append(({**key, "cumulative": study.get("cumulative", False), "options": given}, recipe))
        for line, recipe in runs:
            print(f"{line['study']}: {line['variant']}, seed {line['seed']}", flush=True)
            file.write(json.dumps({**line, **train(recipe)}) + "\n")
            file.flush()


def _different(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """Return the options that differ. A missing one is None: an option that was added later is None where not used."""
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


def load_lines(path: str, required: bool = False) -> list[dict[str, Any]]:
    """Read the lines of a results file, [] if it does not exist.

    Raises:
        ValueError: There are no lines, although they are `required`.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
    if required and not lines:
        raise ValueError(f"{path} does not exist or has no results. Run `python scripts/study.py run` first.")
    return [json.loads(line) for line in lines]


def group_lines(lines: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return study -> variant -> its lines, one per seed, in the order of the file."""
    studies: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in lines:
        studies.setdefault(line["study"], {}).setdefault(line["variant"], []).append(line)
    return studies


def format_tables(lines: list[dict[str, Any]]) -> str:
    """Return one table per study: the mean over seeds, each seed and, if cumulative, the gain of each change."""
    text = []
    for study, rows in group_lines(lines).items():
        cells: list[list[str]] = []
        means: list[float] = []
        for name, runs in rows.items():
            means.append(mean(run[MEASURE] for run in runs))
            gain = f"{means[-1] - means[-2]:+.4f}" if runs[0].get("cumulative") and len(means) > 1 else ""
            each = ", ".join(f"{run[MEASURE]:.4f}" for run in runs)
            others = [mean(run.get(part, nan) for run in runs) for part in ("standard_error", "short", "long")]
            error, short, long = (f"{number:.4f}" for number in others)
            minutes = mean(run["curve"][-1][1] for run in runs) / 60
            cells.append([name, f"{means[-1]:.4f}", error, gain, each, short, long, f"{minutes:.1f}"])
        header = ["variant", "NDCG@10", "±", "gain", "seeds", "short", "long", "minutes"]
        text += [f"**{study}**", "", markdown_table(header, cells)]
        text += [
            "",
            f"Median of the variants {median(means):.4f}, best variant {max(means):.4f}. ±: standard error over",
        ]
        text += ["users. short, long: NDCG@10 of users with histories up to and above the median length.", ""]
    return "\n".join(text)


def plot(lines: list[dict[str, Any]], path: str, x: str) -> None:
    """Plot NDCG@10 over minutes, one line per run, or over the option `x`, for all users and for each half of them.

    Raises:
        ValueError: A line has no number as option `x`.
    """
    if x != "minutes" and not all(isinstance(line["options"].get(x), int | float) for line in lines):
        raise ValueError(f"`--x` must be minutes, or an option with a number in every line of the results, found {x}.")
    studies = group_lines(lines)
    figure = Figure(figsize=(5.5 * len(studies), 4), layout="constrained")
    for axes, (study, rows) in zip(np.atleast_1d(figure.subplots(1, len(studies))), studies.items(), strict=True):
        if x == "minutes":
            for number, (name, runs) in enumerate(rows.items()):
                for run in runs:
                    _, seconds, scores = np.array(run["curve"]).T
                    label = name if run is runs[0] else None
                    axes.plot(seconds / 60, scores, marker=".", color=f"C{number}", label=label)
        else:
            points = sorted(rows.values(), key=lambda runs: float(runs[0]["options"][x]))
            places = [float(runs[0]["options"][x]) for runs in points]
            halves = {MEASURE: "all users", "short": "shorter half of the histories", "long": "longer half"}
            for name, label in halves.items():
                scores = [mean(run.get(name, nan) for run in runs) for runs in points]
                axes.plot(places, scores, marker="o", label=label)
        axes.set(title=study, xlabel=x, ylabel="validation NDCG@10", ylim=(0, None))
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train the variants that have no result yet")
    running.add_argument("study", help="YAML file of the study")
    running.add_argument("results", help="JSON lines file to append to")
    running.add_argument("--seeds", type=int, nargs="+", help="seeds to run, instead of those of the study")
    running.add_argument("--threads", type=int, default=1, help="number of threads of torch (default: 1)")
    showing = commands.add_parser("table", help="print the Markdown tables")
    drawing = commands.add_parser("plot", help="draw a PNG of NDCG@10 over minutes or over an option")
    for command in (showing, drawing):
        command.add_argument("results", help="JSON lines file that the command run has written")
    drawing.add_argument("image", help="PNG file to write")
    drawing.add_argument("--x", default="minutes", help="minutes (default), or an option that the variants change")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()
    transformers.logging.disable_progress_bar()
    with plain_errors():
        if args.command == "run":
            run(args.study, args.results, args.seeds, args.threads)
        elif args.command == "table":
            print(format_tables(load_lines(args.results, required=True)))
        else:
            plot(load_lines(args.results, required=True), args.image, args.x)
