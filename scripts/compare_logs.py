"""Compare the recommended settings with baselines and SASRec on several logs.

    python scripts/make_logs.py logs
    python scripts/compare_logs.py runs/logs scripts/results/any-log.jsonl logs/*.csv

For each log that has no line in the results yet, `hf-bert4rec compare` trains BERT4Rec and SASRec with the settings
that a user without a recipe gets, and fits the baselines. A line contains NDCG@10 of all models on test, and the
difference between BERT4Rec and each other model, with its 95 % interval and its p-value.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from hf_bert4rec.cli.compare import compare
from hf_bert4rec.data.interactions import load_interactions
from hf_bert4rec.hub.run_facts import ADDED_PARTS
from hf_bert4rec.training.settings import recommended_settings

SEED = 42
MOST_ITEMS = 13_000  # EASE inverts a matrix of this width
BASELINES: dict[str, dict[str, Any]] = {
    "Popularity": {"baseline": "popularity"},
    "Markov chain": {"baseline": "markov_chain"},
    "Item neighbors": {"baseline": "item_neighbors"},
    "ALS": {"baseline": "als"},
    "EASE": {"baseline": "ease"},
    "Own items": {"baseline": "own_items"},
}


def compare_log(log: Path, folder: Path) -> dict[str, Any]:
    """Train and evaluate all models on a log, and return the line of its results."""
    interactions = load_interactions(str(log))
    settings = recommended_settings(interactions)
    items = len(set(interactions["item"][:]))
    models = dict(BASELINES)
    if items > MOST_ITEMS:
        del models["EASE"]
    if settings.model.get("exclude_history", True):  # own items would not be recommended
        del models["Own items"]
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"data": str(log.absolute()), "seed": SEED}), encoding="utf-8")
    models["SASRec"] = {"recipe": str(recipe), "architecture": "sasrec"}
    models["BERT4Rec"] = {"recipe": str(recipe)}
    comparison = folder / "comparison.yaml"
    comparison.write_text(yaml.safe_dump({"recipe": str(recipe), "models": models}), encoding="utf-8")
    compare(str(comparison), "test", str(folder))
    summary = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    scores = {name: round(row["metrics"]["ndcg@10"], 5) for name, row in summary["models"].items()}
    differences = {}
    for pair in summary["differences"]:
        first, second = pair["models"]
        if "BERT4Rec" in (first, second):
            sign, other = (1, second) if first == "BERT4Rec" else (-1, first)
            interval = sorted(round(sign * end, 5) for end in pair["interval"])
            differences[other] = {"mean": round(sign * pair["mean"], 5), "interval": interval, "p": pair["p"]}
    return {
        "log": log.stem,
        "users": summary["users"],
        "items": items,
        "interactions": len(interactions),
        "settings": settings.reason,
        "added parts": [name for name in ADDED_PARTS if name in settings.model],
        "ndcg@10": scores,
        "differences": differences,
        "seconds": summary["models"]["BERT4Rec"]["training_seconds"],
        "seed": SEED,
    }


def main() -> None:
    """Compare on each log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder for the models and reports, one folder per log.")
    parser.add_argument("results", type=Path, help="File to which one JSON line per log is appended.")
    parser.add_argument("logs", type=Path, nargs="+", help="Logs to read. A log with a line in the results is skipped.")
    args = parser.parse_args()
    lines = args.results.read_text(encoding="utf-8").splitlines() if args.results.exists() else []
    done = {json.loads(line)["log"] for line in lines}
    for log in args.logs:
        if log.stem in done:
            print(f"{log.stem}: skipped, because {args.results} has a line for it")
        else:
            folder = args.folder / log.stem
            folder.mkdir(parents=True, exist_ok=True)
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(compare_log(log, folder), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
