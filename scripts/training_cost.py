"""Train a recipe, and write the cost of each validation score: steps, floating-point operations, processor seconds.

    python scripts/training_cost.py cost.jsonl prefixes scripts/configs/beauty-5core.yaml
    python scripts/training_cost.py cost.jsonl cloze scripts/configs/beauty-5core.yaml --prefixes false

Each run appends a JSON line with a name, score and cost at each evaluation, and the operators of torch with the most
time. Floating-point operations are those of matrix products, counted by torch in the steps 101 to 110. Those of the
softmax over the catalog follow from the number of scored positions. The steps 111 to 130 are profiled, so the training
needs at least 130 steps. Processor seconds do not include the profiled steps and the evaluations. The test split is
not used.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow down small models

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.cli.prepare import prepare
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.cli.report import EpochLines
from hf_bert4rec.cli.trainers import build_trainer

COUNTED, PROFILED = range(100, 110), range(110, 130)  # numbers of finished steps before a measured step
SHOWN = 12  # operators in the profile


class CostCallback(TrainerCallback):
    """Record the cost of all steps before each evaluation."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.scored = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.curve: list[dict[str, Any]] = []
        self.profile: dict[str, float] = {}
        self.flops, self.softmax, self.seconds, self.started = 0.0, 0.0, 0.0, 0.0
        self.tool: Any = None

    def _count(self, model: Any, args: tuple, kwargs: dict) -> None:
        if isinstance(self.tool, FlopCounterMode):
            self.scored += int((kwargs["labels"] != -100).sum())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, and a tool before the steps that it measures."""
        self.started = time.process_time()
        if state.global_step in (COUNTED.start, PROFILED.start):
            kinds = {COUNTED.start: lambda: FlopCounterMode(display=False)}
            self.tool = kinds.get(state.global_step, lambda: profile(activities=[ProfilerActivity.CPU]))()
            self.tool.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Stop the clock, and the tool after its last step."""
        if state.global_step == COUNTED.stop:
            self.tool.__exit__(None, None, None)
            # Scores, and the gradients of states and item table: three products of this size.
            softmax = 3 * 2 * self.scored * model.config.vocab_size * model.config.hidden_size
            self.flops = (self.tool.get_total_flops() + softmax) / len(COUNTED)
            self.softmax = softmax / len(COUNTED)
            self.tool = None
        if state.global_step == PROFILED.stop:
            self.tool.__exit__(None, None, None)
            events = sorted(self.tool.key_averages(), key=lambda event: -event.self_cpu_time_total)
            total = sum(event.self_cpu_time_total for event in events)
            self.profile = {event.key: round(event.self_cpu_time_total / total, 3) for event in events[:SHOWN]}
        if state.global_step - 1 not in PROFILED:  # a step with the profiler takes longer
            self.seconds += time.process_time() - self.started

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Record the score, and the processor seconds of all steps so far."""
        steps = state.global_step
        entry = {"step": steps, "ndcg@10": metrics["eval_ndcg@10"], "seconds": round(self.seconds)}
        self.curve.append(entry)
        print(entry, flush=True)


def measure(results: str, name: str, words: list[str]) -> None:
    """Train a recipe with the options `words`, and append a line to `results`; ValueError for fewer than 130 steps."""
    with tempfile.TemporaryDirectory() as folder:
        recipe, _, tokenizer, histories = prepare(parse_recipe([*words, "--output_dir", folder]))
        trainer = build_trainer(recipe, tokenizer, histories)
        trainer.remove_callback(EpochLines)
        trainer.add_callback(cost := CostCallback(trainer.model))
        trainer.train()
    if not cost.profile:
        found = f"found {trainer.state.global_step}"
        raise ValueError(f"The training must have at least {PROFILED.stop} steps, {found}. Train for more epochs.")
    for entry in cost.curve:
        entry["teraflops"] = round(cost.flops * entry["step"] / 1e12, 2)
    line = {
        "name": name,
        "options": words,
        "rows": len(histories["train"]),
        "gflops_per_step": round(cost.flops / 1e9, 2),
        "gflops_of_softmax": round(cost.softmax / 1e9, 2),
        "curve": cost.curve,
        "profile": cost.profile,
        "threads": torch.get_num_threads(),
    }
    with Path(results).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="JSON lines file to append to")
    parser.add_argument("name", help="name of the line")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="recipe and options, as for hf-bert4rec train")
    given = parser.parse_args()
    with plain_errors():
        measure(given.results, given.name, given.options)
