"""Runs of a recipe with several seeds: record their results, and show the mean on the card of one of them.

    hf-bert4rec train scripts/configs/beauty.yaml --seed 43 --output_dir runs/beauty-43
    python scripts/seeds.py record scripts/results/seeds-beauty.jsonl runs/beauty-43/model
    python scripts/seeds.py card scripts/results/seeds-beauty.jsonl model_cards/bert4rec-beauty

`record` appends one line for each run to a file of JSON lines. `card` writes the results of the other seeds into the
run facts of a checkpoint, and its card anew. Both refuse runs on other data, or with another protocol.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.hub.model_card import CARD, model_card
from hf_bert4rec.hub.run_facts import RunFacts

SPLITS = ("validation", "test")


def read(file: Path) -> list[dict[str, Any]]:
    """Read the recorded runs."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def check_equal(run: dict[str, Any], facts: RunFacts, where: Path) -> None:
    """Raise ValueError if a recorded run and a checkpoint have other data, or were evaluated in another way."""
    expected = {"data": facts.data.sha256, "protocol": facts.protocol, "sampled_protocol": facts.sampled_protocol}
    for name, value in expected.items():
        if run[name] != value:
            raise ValueError(f"{where}: {name} is {value!r}, but that of seed {run['seed']} is {run[name]!r}.")


def record(file: Path, folders: list[Path]) -> None:
    """Append the results of checkpoints to a file."""
    runs = read(file)
    for folder in folders:
        facts = RunFacts.load(folder)
        run = {
            "seed": facts.recipe["seed"],
            "batch": facts.recipe.get("per_device_train_batch_size"),
            "seconds": facts.seconds,
            "machine": str(facts.machine),
            "versions": facts.versions,
            "protocol": facts.protocol,
            "sampled_protocol": facts.sampled_protocol,
            "data": facts.data.sha256,
            **{split: facts.results[split][facts.model] for split in SPLITS},
            "interval": facts.intervals["test"][facts.model],
        }
        for other in runs:
            check_equal(other, facts, folder)
            if other["seed"] == run["seed"]:
                raise ValueError(f"{folder}: {file} already has a run with seed {run['seed']}.")
        runs.append(run)
    file.write_text("".join(json.dumps(run) + "\n" for run in runs), encoding="utf-8")


def write_card(file: Path, folder: Path) -> None:
    """Write the results of the other seeds into the run facts and the card of a checkpoint."""
    facts = RunFacts.load(folder)
    runs = read(file)
    for run in runs:
        check_equal(run, facts, folder)
    others = [run for run in runs if run["seed"] != facts.recipe["seed"]]
    seeds = {split: {str(run["seed"]): run[split] for run in others} for split in SPLITS}
    facts = dataclasses.replace(facts, other_seeds=seeds)
    model_card(facts).save(folder / CARD)
    facts.save(folder)


def main(args: list[str] | None = None) -> None:
    """Run the command of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="append the results of checkpoints to a file")
    showing = commands.add_parser("card", help="show the mean over seeds on the card of a checkpoint")
    for command in (recording, showing):
        command.add_argument("file", type=Path, help="file of JSON lines")
    recording.add_argument("folders", type=Path, nargs="+", metavar="checkpoint", help="folder of a trained model")
    showing.add_argument("folder", type=Path, metavar="checkpoint", help="folder of a trained model")
    given = parser.parse_args(args)
    with plain_errors():
        if given.command == "record":
            record(given.file, given.folders)
        else:
            write_card(given.file, given.folder)


if __name__ == "__main__":
    main()
