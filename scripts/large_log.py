"""Measure reading, preparing and training on a large random log, one JSON line per stage.

    python scripts/large_log.py >> scripts/results/large-log.jsonl

The log has 20 million interactions of a million users with 200,000 items, whose popularity falls with the rank. The
stages are those of the Python example in the README. `peak GB` is the largest memory of the process so far.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import set_seed

import hf_bert4rec as package
from hf_bert4rec import RecommendationTrainer, RecommendationTrainingArguments, cloze_training
from hf_bert4rec.training.resources import peak_memory


def draw_log(file: Path, interactions: int, users: int, items: int) -> None:
    """Write a random log with the columns `user`, `item` and `timestamp` (seconds) as Parquet."""
    generator = np.random.default_rng(0)
    columns = {
        "user": generator.integers(users, size=interactions),
        "item": (items * generator.random(interactions) ** 2).astype(np.int64),  # item 0 is the most popular one
        "timestamp": np.sort(generator.integers(1_600_000_000, 1_700_000_000, interactions)),
    }
    pq.write_table(pa.table(columns), file)


def main() -> None:
    """Measure, and print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=200, help="of the training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()

    def report(stage: str, value: Any = None) -> Any:
        nonlocal started
        now = time.process_time()
        line = {"stage": stage, "cpu seconds": round(now - started, 1), "peak GB": round(peak_memory(), 2)}
        print(json.dumps({"interactions": args.interactions, **line}), flush=True)
        started = time.process_time()
        return value

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "log.parquet")
        # In a process of its own, whose memory does not count.
        child = multiprocessing.get_context("spawn").Process(
            target=draw_log, args=(file, args.interactions, args.users, args.items)
        )
        child.start()
        child.join()
        started = time.process_time()
        interactions = report("reading", package.load_interactions(str(file)))
        settings = report("settings", package.recommended_settings(interactions))
        tokenizer = report("tokenizer", package.item_tokenizer(interactions, max_length=50))
        histories = report("leave-one-out split", package.leave_one_out(interactions, tokenizer, **settings.splitting))
        options = {**settings.training, "max_steps": args.steps, "eval_strategy": "no", "save_strategy": "no"}
        arguments = RecommendationTrainingArguments(folder, **options, use_cpu=True)
        set_seed(arguments.seed)
        sizes = {**settings.model, "loss": "sampled_softmax", "max_position_embeddings": 50}
        model = package.Bert4RecForMaskedLM(package.Bert4RecConfig(vocab_size=len(tokenizer), **sizes))
        report("initial vectors", package.initialize_items(model, histories["train"]))
        trainer = RecommendationTrainer(
            model, arguments, train_dataset=histories["train"], **cloze_training(tokenizer, **settings.masking)
        )
        report(f"training, {args.steps} steps", trainer.train())


if __name__ == "__main__":
    main()
