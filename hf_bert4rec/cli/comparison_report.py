"""Results of a comparison: saved in files, and reported in Markdown tables."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..data.audit import Finding
from ..evaluation.comparison import SMALLEST_P, UserResults, holm, paired_difference
from ..evaluation.ranking import SAMPLED_METRICS, bootstrap_interval, how_sampled, ndcg_gains
from ..hub.model_card import markdown_table, results_table
from ..hub.run_facts import ADDED_PARTS

LEGEND = """\
- 95 %: bootstrap interval of NDCG@10 over users.
- coverage: share of the catalog that is recommended to at least one user.
- popularity: how often a recommended item occurs in training, as a multiple of how often a target does.
- ties: share of the users whose target has the same score as another item.
- training: seconds on processes × threads.
- users/s: users that are evaluated per second.
- GB: peak memory of the process that evaluated the model, and trained it unless it was trained before."""

PARTS_DIFFER = (
    "The trained models differ in %s, which may explain differences of their metrics. To compare losses or encoders "
    "alone, train all models with `num_followers: 0` and `repeat_head: false`."
)
"""Warning, for the options of `ADDED_PARTS` that differ between the trained models."""

Results = Mapping[str, "ModelResult"]
Published = Mapping[str, Mapping[str, Mapping[str, float]]]
Summary = Mapping[str, Any]  # as from `summarize`, or read from `comparison.json`
COSTS = ("training_seconds", "processes", "threads", "users_per_second", "peak_gb")
CELLS = {
    "HR@10": "{metrics[hr@10]:.4f}",
    "NDCG@10": "{metrics[ndcg@10]:.4f}",
    "95 %": "{interval[0]:.4f} to {interval[1]:.4f}",
    "MRR@10": "{metrics[mrr@10]:.4f}",
    "coverage": "{metrics[coverage@10]:.3f}",
    "popularity": "{metrics[popularity@10]:.2f}",
    "ties": "{metrics[ties]:.3f}",
    "training": "{training_seconds:,.0f} s on {processes} × {threads}",
    "users/s": "{users_per_second:,.0f}",
    "GB": "{peak_gb:.2f}",
}
"""Format of each column of the metrics table, for the entry of a model in the summary."""


@dataclass(kw_only=True)
class ModelResult:
    """Evaluation of one model on a split, saved as a JSON file, with the results of each user in an NPZ file."""

    settings: dict[str, Any]  # what determines the result: options, split, data and weights
    protocol: str  # how the model was evaluated over the whole catalog
    sampled_protocol: str | None  # the same among sampled candidates; None if there are none
    metrics: dict[str, float]  # as from `split_metrics`
    training_seconds: float
    processes: int  # of the training
    threads: int  # of each process
    users_per_second: float  # speed of the evaluation
    peak_gb: float  # memory of the process that evaluated the model
    users: UserResults

    @classmethod
    def load(cls, folder: str, model: str) -> Self:
        """Read the JSON and NumPy file of an evaluated model."""
        file = result_file(folder, model)
        with np.load(file.with_suffix(".npz")) as arrays:
            return cls(**json.loads(file.read_text(encoding="utf-8")), users=UserResults(**arrays))

    def save(self, folder: str, model: str) -> None:
        """Write the NPZ file, then the JSON file: a result is complete if the JSON file exists."""
        values, file = dict(vars(self)), result_file(folder, model)
        arrays = {key: value for key, value in vars(values.pop("users")).items() if value is not None}
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file.with_suffix(".npz"), **arrays)
        file.write_text(json.dumps(values, indent=1), encoding="utf-8")


def result_file(folder: str, model: str) -> Path:
    """Return the JSON file of a model, which exists when its result is complete."""
    return Path(folder, re.sub(r"\W+", "-", model.lower()).strip("-") + ".json")


def summarize(
    split: str,
    results: Results,
    groups: Mapping[str, np.ndarray],
    published: Published,
    findings: Sequence[Finding],
    options: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return all numbers of a comparison as JSON values, from which `format_report` makes the tables.

    `groups` come from `user_groups`; empty groups are excluded. `findings` are the result of `audit`. `options`
    differ between the trained models: option → model → value.
    """
    first = next(iter(results.values()))
    groups = {name: users for name, users in groups.items() if users.any()}
    models = {}
    for name, result in results.items():
        gains = ndcg_gains(result.users.ranks, 10)
        models[name] = {
            "metrics": {metric: float(value) for metric, value in result.metrics.items()},
            "interval": list(bootstrap_interval(gains)),
            "groups": {group: float(gains[users].mean()) for group, users in groups.items()},
            **{cost: getattr(result, cost) for cost in COSTS},
        }
    return {
        "split": split,
        "protocol": first.protocol,
        "sampled_protocol": first.sampled_protocol,
        "users": first.users.ranks.size,
        "models": models,
        "groups": {name: int(users.sum()) for name, users in groups.items()},
        "published": published,
        "options": options,
        "differences": summarize_differences(results),
        "leaks": [str(finding) for finding in findings if finding.leak and len(finding.rows)],
        "properties": [str(finding) for finding in findings if not finding.leak],
    }


def summarize_differences(results: Results) -> list[dict[str, Any]]:
    """Return the difference of NDCG@10 for each pair of models, with p-values corrected for the number of pairs."""
    ranked = sorted(results, key=lambda name: -results[name].metrics["ndcg@10"])
    pairs = {pair: paired_difference(*(results[name].users.ranks for name in pair)) for pair in combinations(ranked, 2)}
    corrected = holm({pair: difference.p for pair, difference in pairs.items()})
    return [
        {
            "models": list(pair),
            "mean": found.mean,
            "interval": [found.low, found.high],
            "p": corrected[pair],
            "p_is_bound": found.p == SMALLEST_P,
        }
        for pair, found in pairs.items()
    ]


def format_report(summary: Summary) -> str:
    """Return the report of a comparison as Markdown."""
    number = f"{summary['users']:,} users"
    parts = [f"Protocol: {summary['split']}, {summary['protocol']}; {number}.", metrics_table(summary), LEGEND]
    if table := sampled_metrics_table(summary):
        protocol = f"{summary['split']}, {summary['sampled_protocol']}; {number}"
        parts += [f"Protocol: {protocol}. Never compare these metrics with those of the table above.", table]
    parts += [groups_table(summary)]
    if table := options_table(summary):
        parts += ["Options that differ between the trained models:", table]
    if different := differing_parts(summary):
        parts += [f"**Note**: {PARTS_DIFFER % different}"]
    parts += [differences_table(summary)]
    if summary["leaks"]:
        parts += ["**Leaks**, or interactions that a user repeated at the same time:"]
        parts += ["\n".join(f"- {line}" for line in summary["leaks"])]
    else:
        parts += ["The audit found no leaks of a user's own targets."]
    parts += ["Properties of the split:", "\n".join(f"- {line}" for line in summary["properties"])]
    return "\n\n".join(parts) + "\n"


def format_interval(interval: Sequence[float], sign: str = "") -> str:
    """Return an interval as text with four decimals, such as "0.1839 to 0.1998"; with `sign="+"` also signs above 0."""
    low, high = interval
    return f"{low:{sign}.4f} to {high:{sign}.4f}"


def metrics_table(summary: Summary) -> str:
    """Return a table of metrics over the whole catalog and costs, one row per model."""
    rows = [[name, *(cell.format(**model) for cell in CELLS.values())] for name, model in summary["models"].items()]
    return markdown_table(["model", *CELLS], rows)


def sampled_metrics_table(summary: Summary) -> str:
    """Return a table of measured and published metrics among candidates; "" if no model has such metrics."""
    models, published = summary["models"], summary["published"]
    sampled = next(filter(None, (how_sampled(model["metrics"]) for model in models.values())), None)
    if sampled is None:
        return ""
    rows: dict[str, Mapping[str, float]] = {}
    for name in dict.fromkeys([*models, *published]):
        if name in models:
            rows[name] = {metric: models[name]["metrics"][f"{metric}_{sampled}"] for metric in SAMPLED_METRICS}
        rows |= {f"{name} in {source}": values for source, values in published.get(name, {}).items()}
    return results_table(rows, SAMPLED_METRICS, "model")


def options_table(summary: Summary) -> str:
    """Return a table of the options that differ between the trained models, one row per option; "" if none differ."""
    options = summary.get("options", {})  # not in earlier files
    models = [name for name in summary["models"] if any(name in row for row in options.values())]
    rows = [[option, *(_text(row[name]) if name in row else "" for name in models)] for option, row in options.items()]
    return markdown_table(["option", *models], rows) if rows else ""


def differing_parts(summary: Summary) -> str:
    """Return the options of `ADDED_PARTS` that differ between the trained models, as text."""
    return " and ".join(f"`{name}`" for name in ADDED_PARTS if name in summary.get("options", {}))


def _text(value: Any) -> str:
    """Return the value of an option as it is written in a recipe."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def groups_table(summary: Summary) -> str:
    """Return a table of NDCG@10 per group of users, one row per model."""
    header = ["NDCG@10", *(f"{name} ({users:,})" for name, users in summary["groups"].items())]
    rows = [[name, *(f"{v:.4f}" for v in model["groups"].values())] for name, model in summary["models"].items()]
    return markdown_table(header, rows)


def differences_table(summary: Summary) -> str:
    """Return a table of the difference of NDCG@10 and the p-value for each pair of models."""
    rows = []
    for pair in summary["differences"]:
        p = f"{'≤ ' if pair['p_is_bound'] else ''}{pair['p']:.4f}"
        rows.append([" − ".join(pair["models"]), f"{pair['mean']:+.4f}", format_interval(pair["interval"], "+"), p])
    p_header = f"p, corrected for {len(rows)} pair{'s' * (len(rows) != 1)}"
    return markdown_table(["difference of NDCG@10", "", "95 %, this pair", p_header], rows)
