"""Train a recipe and write what each validation score costs: steps, floating-point operations and processor seconds.

    python scripts/training_cost.py cost.jsonl prefixes scripts/configs/beauty-5core.yaml
    python scripts/training_cost.py cost.jsonl cloze scripts/configs/beauty-5core.yaml --prefixes false

Each run appends a line with a name, score and cost at each evaluation, and the operators of torch with the most time.
Floating-point operations are those of matrix products, counted by torch in ten steps. Those of the softmax over the
catalog follow from the number of scored positions. Evaluations do not count. The test split is not used.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow down small models

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from hf_bert4rec.cli.prepare import prepare
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.cli.report import EpochLines
from hf_bert4rec.cli.trainers import build_trainer

COUNTED, PROFILED = range(100, 110), range(110, 130)  # steps
SHOWN = 12  # operations in the profile


class CostCallback(TrainerCallback):
    """Record the cost of the steps until each evaluation."""

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
        if state.global_step not in PROFILED:  # a step with the profiler takes longer
            self.seconds += time.process_time() - self.started

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Record a score."""
        steps = state.global_step
        entry = {"step": steps, "ndcg@10": metrics["eval_ndcg@10"], "seconds": round(self.seconds)}
        self.curve.append(entry)
        print(entry, flush=True)


def main() -> None:
    """Train and append a line."""
    results, name, *words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        recipe, _, tokenizer, histories = prepare(parse_recipe([*words, "--output_dir", folder]))
        trainer = build_trainer(recipe, tokenizer, histories)
        trainer.remove_callback(EpochLines)
        trainer.add_callback(cost := CostCallback(trainer.model))
        trainer.train()
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
    main()
