"""Compare three ways to keep a model up to date, on a log in ten periods with the same number of interactions.

    python scripts/drift.py generated runs/drift scripts/results/drift.jsonl
    python scripts/drift.py ml-latest-small runs/drift scripts/results/drift.jsonl --targets 20 --tolerance 1

A first model (a) is trained on three periods. After each further period, the command continues the last accepted model
with the new interactions (b), and trains another one from scratch on all interactions so far (c), with the recommended
settings and the same validation targets. A continued model is rejected if the command fails, as it does for a model
that is worse than the one before. The three models are evaluated on the first interaction of each user in the next
period, ranked among all items without the history. Targets that a model does not contain count as missed. Seconds are
the processor time of the whole command. Further options, such as `--learning_rate`, are passed to the command of (b).

In the generated log, users choose popular items of their two tastes, or the follower of their last item. In each period
a tenth of the items is replaced by new ones, and a fifth of the items gets other followers and another popularity.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments

from hf_bert4rec import ItemTokenizer, build_histories, cloze_training, load_interactions, sort_by_user
from hf_bert4rec.data.splits import first_from

PERIODS, FIRST = 10, 3
ITEMS, CLUSTERS, LENGTH, SEED = 1000, 20, 6, 43  # other seeds chose the options of the command


def generate_log(number: int) -> pd.DataFrame:
    """Return a log with drift. From a random period on, users have about five interactions in 70 % of the periods."""
    random = np.random.default_rng(SEED)
    items = np.arange(ITEMS)
    cluster, weight = random.integers(0, CLUSTERS, ITEMS), random.pareto(1.2, ITEMS) + 0.1
    follower = random.permutation(ITEMS)
    tastes, starts = random.integers(0, CLUSTERS, (number, 2)), random.integers(0, PERIODS - 2, number)
    rows: list[tuple[int, int, float]] = []
    had: list[set[int]] = [set() for _ in range(number)]
    last = [-1] * number
    for period in range(PERIODS):
        if period:
            replaced = random.choice(ITEMS, ITEMS // 10, replace=False)
            items[replaced] = items.max() + 1 + np.arange(len(replaced))
            moved = random.choice(ITEMS, ITEMS // 5, replace=False)
            follower[moved] = follower[random.permutation(moved)]
            weight[random.choice(ITEMS, ITEMS // 5, replace=False)] = random.pareto(1.2, ITEMS // 5) + 0.1
        for user in np.flatnonzero((starts <= period) & (random.random(number) < 0.7)):
            for step in range(1 + random.poisson(LENGTH - 1)):
                members = np.flatnonzero(cluster == random.choice(tastes[user]))
                slot = random.choice(members, p=weight[members] / weight[members].sum())
                if last[user] >= 0 and random.random() < 0.4:
                    slot = follower[last[user]]
                if items[slot] not in had[user]:
                    rows.append((int(user), int(items[slot]), period + step / 100 + random.random() / 1000))
                    had[user].add(items[slot])
                    last[user] = slot
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


def run(*words: str) -> tuple[float, int]:
    """Run the command in a process of its own; return its processor seconds and exit status."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "hf_bert4rec.cli.main", *words, "--disable_tqdm", "true"]
    status = subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, status


def targets_of(log: pd.DataFrame, tokenizer: ItemTokenizer, start: float, end: float, number: int) -> Dataset:
    """Return rows whose targets are the first `number` interactions of each user from `start` to before `end`.

    The history of a target has all earlier interactions of the user. The first interaction of a user is no target.
    """
    encoded = sort_by_user(Dataset.from_pandas(log, preserve_index=False), tokenizer)
    first, ends = first_from(encoded, start), first_from(encoded, end)
    rows = []
    for places in (first + later for later in range(number)):
        some = (encoded.starts < places) & (places < ends)
        rows.append(build_histories(encoded, tokenizer, encoded.starts, {"test": np.where(some, places, -1)})["test"])
    return concatenate_datasets(rows)


def evaluate(folder: Path, log: pd.DataFrame, start: float, end: float, number: int) -> tuple[float, int]:
    """Return NDCG@10 of a model on the rows of `targets_of`, and their number."""
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = targets_of(log, tokenizer, start, end, number)
    args = TrainingArguments(
        "runs",
        per_device_eval_batch_size=256,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    metrics = Trainer(model, args, **cloze_training(tokenizer, callbacks=[])).evaluate(rows)
    return round(metrics["eval_ndcg@10"], 5), len(rows)


def main() -> None:
    """Measure, and append a line for each period to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", help="log of interactions with timestamps, or the word generated")
    parser.add_argument("folder", type=Path, help="folder for models; its subfolder for the log is replaced")
    parser.add_argument("results", type=Path, help="JSON Lines file, to which one line per period is appended")
    parser.add_argument("--users", type=int, default=1000, help="number of users of a generated log (%(default)s)")
    parser.add_argument("--targets", type=int, default=1, help="targets per user and period (%(default)s)")
    args, options = parser.parse_known_args()
    generated = args.log == "generated"
    log = generate_log(args.users) if generated else load_interactions(args.log).to_pandas()
    name = f"generated, {args.users:,} users" if generated else Path(args.log).stem
    log = log.astype({"user": str, "item": str}).sort_values("timestamp", kind="stable").reset_index(drop=True)
    bounds = [len(log) * number // PERIODS for number in range(PERIODS + 1)]
    times = [log["timestamp"].iloc[min(bound, len(log) - 1)] for bound in bounds]
    times[-1] = np.inf
    folder = args.folder / name.replace(", ", "-").replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(PERIODS):
        part = log[(log["timestamp"] >= times[number]) & (log["timestamp"] < times[number + 1])]
        part.to_csv(folder / f"{number}.csv", index=False)
    for number in range(FIRST, PERIODS):
        log[log["timestamp"] < times[number]].to_csv(folder / f"before-{number}.csv", index=False)
    run(
        "train",
        "--data",
        f"{folder}/before-{FIRST}.csv",
        "--output_dir",
        f"{folder}/once",
        "--split",
        "new_interactions",
    )
    current, rejected = folder / "once" / "model", 0
    for number in range(FIRST, PERIODS - 1):  # number: the newest period that is trained on
        output = folder / f"continued-{number}"
        seconds, status = run(
            *("train", "--continue_from", str(current), "--data", f"{folder}/{number}.csv"),
            *("--history", f"{folder}/before-{number}.csv", "--output_dir", str(output), *options),
        )
        current, rejected = (current, rejected + 1) if status else (output / "model", rejected)
        whole = f"{folder}/retrained-{number}"
        everything = f"{folder}/before-{number + 1}.csv"
        split = [
            "--split",
            "new_interactions",
            "--since",
            str(times[number]),
            "--replay",
            "1000000",
        ]  # the validation targets of the continued model
        retraining, _ = run("train", "--data", everything, "--output_dir", whole, *split)
        models = {"once": folder / "once" / "model", "continued": current, "retrained": Path(whole, "model")}
        scores = {
            name: evaluate(path, log, times[number + 1], times[number + 2], args.targets)
            for name, path in models.items()
        }
        line = {
            "log": name,
            "period": number + 2,
            "ndcg@10": {name: score for name, (score, _) in scores.items()},
            "targets": scores["once"][1],
            "seconds": {"continued": round(seconds, 1), "retrained": round(retraining, 1)},
            "rejected": rejected,
            "options": " ".join(options),
            "seed": SEED,
        }
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
