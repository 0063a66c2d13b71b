"""Record the results of runs of a recipe with several seeds, and show their mean on the card of one of them.

    hf-bert4rec train scripts/configs/beauty.yaml --seed 43 --output_dir runs/beauty-43
    python scripts/seeds.py record scripts/results/seeds-beauty.jsonl runs/beauty-43/model
    python scripts/seeds.py card scripts/results/seeds-beauty.jsonl model_cards/bert4rec-beauty

`record` appends one line for each run to a file of JSON lines. `card` writes the results of the other seeds into the
run facts of a checkpoint, and writes its card again. Both stop with an error if a run has other data or another
protocol than the recorded runs.
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
    """Read the recorded runs; [] if the file does not exist."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def check_equal(run: dict[str, Any], facts: RunFacts, where: Path) -> None:
    """Raise ValueError if a recorded run and a checkpoint have other data, or were evaluated in another way."""
    expected = {"data": facts.data.sha256, "protocol": facts.protocol, "sampled_protocol": facts.sampled_protocol}
    for name, value in expected.items():
        if run[name] != value:
            what = "the checksum of the data" if name == "data" else f"the {name}"
            found = f"{what} is {value!r}, but that of the recorded run with seed {run['seed']} is {run[name]!r}"
            raise ValueError(f"{where}: {found}. Use runs that differ in the seed alone.")


def record(file: Path, folders: list[Path]) -> None:
    """Append the results of checkpoints to a file; ValueError if a seed is recorded already or has no test results."""
    runs = read(file)
    for folder in folders:
        facts = RunFacts.load(folder)
        if missing := [split for split in SPLITS if facts.model not in facts.results.get(split, {})]:
            advice = "Train with `hf-bert4rec train` and a split that holds items out."
            raise ValueError(f"{folder}: found no results of the {missing[0]} split. {advice}")
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
                advice = "Omit this checkpoint, or remove the line of this seed."
                raise ValueError(f"{folder}: {file} already has a run with seed {run['seed']}. {advice}")
        runs.append(run)
    file.write_text("".join(json.dumps(run) + "\n" for run in runs), encoding="utf-8")


def write_card(file: Path, folder: Path) -> None:
    """Write the results of the other seeds into the run facts and the card of a checkpoint; ValueError without runs."""
    facts = RunFacts.load(folder)
    if not (runs := read(file)):
        raise ValueError(f"{file} does not exist or has no runs. Run `python scripts/seeds.py record` first.")
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
    showing.add_argument("folder", type=Path, metavar="checkpoint", help="folder of the model with the card")
    given = parser.parse_args(args)
    with plain_errors():
        if given.command == "record":
            record(given.file, given.folders)
        else:
            write_card(given.file, given.folder)


if __name__ == "__main__":
    main()
