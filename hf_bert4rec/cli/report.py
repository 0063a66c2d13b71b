"""Output of a run: one line per evaluation, the learning curve, the summary and recommendations."""

import io
import shlex
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback

from ..hub.checkpoint import CURVE
from ..hub.model_card import results_table
from ..hub.run_facts import RunFacts
from ..inference.pipeline import NextItemRecommendationPipeline, pipeline
from .own_code import imported

LATE = 0.9  # share of the training after which a best checkpoint is late


class EpochLines(TrainerCallback):
    """Callback that prints one line per evaluation, or per logged loss if the run has no evaluations."""

    loss: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print a line above the progress bar."""
        self.loss = logs.get("loss", self.loss)
        evaluated = "eval_ndcg@10" in logs
        if state.is_world_process_zero and (evaluated or (args.eval_strategy == "no" and "loss" in logs)):
            text = f"epoch {state.epoch:5.1f}" + ("" if self.loss is None else f"   loss {self.loss:6.3f}")
            if evaluated:
                text += f"   validation HR@10 {logs['eval_hr@10']:.4f}   NDCG@10 {logs['eval_ndcg@10']:.4f}"
            tqdm.write(text)


class EpochLinesWithBar(EpochLines, ProgressCallback):
    """`EpochLines` with the progress bars of the Trainer."""

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Show the progress of an evaluation during training."""
        if self.training_bar is not None:
            super().on_prediction_step(*args, **kwargs)


def draw_curve(facts: RunFacts) -> bytes:
    """Return a PNG of training loss and validation NDCG@10 over epochs, with the baselines."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"{facts.name}, seed {facts.recipe['seed']}: {facts.protocol}", fontsize=9)
    curves = (left, "loss", "training loss (nats per item)"), (right, "eval_ndcg@10", "validation NDCG@10")
    for axes, name, label in curves:
        points = [(entry["epoch"], entry[name]) for entry in facts.log if name in entry]
        axes.plot(*np.array(points).reshape(-1, 2).T, label=facts.model)
        axes.set(xlabel="epoch", ylabel=label)
    baselines = {name: row for name, row in facts.results.get("validation", {}).items() if name != facts.model}
    for (name, row), style in zip(baselines.items(), cycle(("--", ":", "-.")), strict=False):
        right.axhline(row["ndcg@10"], linestyle=style, color="gray", label=name)
    right.set(ylim=(0, None))
    right.legend()
    png = io.BytesIO()
    figure.savefig(png, dpi=120)
    return png.getvalue()


def summary(folder: Path) -> str:
    """Return a text with test results (else validation results), recommendations and the folder of the checkpoint."""
    facts = RunFacts.load(folder)
    recommender = pipeline(folder)
    history = facts.example or recommender.tokenizer.items[:3].to_pylist()
    if split := next((name for name in ("test", "validation") if name in facts.results), None):
        text = [f"\n{split.capitalize()}: {facts.protocol}; seed {facts.recipe['seed']}"]
        text += [results_table(facts.results[split]), *_differences(facts, split), *_gain_of_training(facts), ""]
    else:
        name = facts.recipe.get("split", "of this run")
        text = [f"\nThere are no results, because the split {name} holds no items out. Seed {facts.recipe['seed']}.\n"]
    text += [recommendation_table(recommender, history, top_k=10)]
    if facts.best_checkpoint and split == "test":
        text += ["", *_advice(facts, folder)]
    return "\n".join([*text, f"Training took {facts.seconds or 0:.0f} s. Checkpoint, card and {CURVE} are in {folder}"])


def _advice(facts: RunFacts, folder: Path) -> list[str]:
    """Return lines that say when the best checkpoint was found, and what to do next."""
    step, last = int(facts.best_checkpoint.rpartition("-")[2]), facts.log[-1]
    epoch = next(entry["epoch"] for entry in facts.log if entry["step"] == step)
    limited = facts.recipe.get("max_steps", -1) > 0
    if step == 1 < last["step"]:
        lines = ["The best checkpoint is from step 1: more training did not improve the model."]
        lines += ["Try a lower `--learning_rate`. If this does not help, a baseline may be the better choice."]
    else:
        lines = [f"The best checkpoint is from {'step 1' if step == 1 else f'epoch {epoch:.3g}'}."]
        if epoch >= LATE * last["epoch"] and not limited:
            lines += ["This is near the end of the training, so more epochs (`--num_train_epochs`) may be better."]
    if limited:
        lines += ["Train without `--max_steps` before you deploy a model."]
    elif last["step"] > 1:
        length = f"--num_train_epochs {epoch:.3g}" if epoch >= 1 else f"--max_steps {step}"
        options = f"--split train_on_all {length} --output_dir {shlex.quote(f'{folder.parent}-all')}"
        options += "".join(f" --import {module}" for module in imported)
        lines[0] += " To train on all interactions before deployment, with the same options:"
        lines.insert(1, f"  hf-bert4rec train {shlex.quote(str(folder))} {options}")
    return lines


def _gain_of_training(facts: RunFacts) -> list[str]:
    """Return a line with validation NDCG@10 before and after the training, if the initial model was evaluated."""
    evaluated = [entry for entry in facts.log if "eval_ndcg@10" in entry]
    shown = "validation" in facts.results and "continue_from" not in facts.recipe  # its log shows the old model
    if not (shown and evaluated and evaluated[0]["step"] <= 1 < facts.log[-1]["step"]):
        return []
    before, after = evaluated[0]["eval_ndcg@10"], facts.results["validation"][facts.model]["ndcg@10"]
    return [f"Validation NDCG@10 of {facts.model}: {before:.4f} before the training (step 1), {after:.4f} after."]


def _differences(facts: RunFacts, split: str) -> list[str]:
    """Return lines with NDCG@10 relative to each baseline, and the paired interval of the difference."""
    lines, results = [], facts.results[split]
    for name, (low, high) in facts.differences.get(split, {}).items():
        ours, theirs = (results[model]["ndcg@10"] for model in (facts.model, name))
        ratio = f"is {ours / theirs:.2f} times that of {name}" if theirs else f"is {ours:.4f}, that of {name} is 0"
        interval = f"{low:+.4f} to {high:+.4f}" + ", within noise" * (low <= 0 <= high)
        lines.append(f"NDCG@10 of {facts.model} {ratio} (difference {ours - theirs:+.4f}, 95 % interval {interval}).")
    return lines


def recommendation_table(recommender: NextItemRecommendationPipeline, history: list[str], **options: Any) -> str:
    """Return a history and its recommendations, one line per item."""
    tokenizer = recommender.tokenizer
    titles = dict(zip(tokenizer.items.to_pylist(), tokenizer.titles or [None] * len(tokenizer.items), strict=True))
    past = [f"  {item:>10}          {titles.get(item, 'unknown ID, skipped') or ''}".rstrip() for item in history]
    past = past or ["  none"]
    recommended = recommender([history], **options)[0]
    best = [f"  {row['item']:>10}  {row['score']:.4f}  {row['title'] or ''}".rstrip() for row in recommended]
    columns = f"(item, score{', title' * bool(tokenizer.titles)})"
    lines = ["History, oldest first:", *past, f"Recommended, best first {columns}:", *best, recommended.reason]
    return "\n".join(filter(None, lines))
