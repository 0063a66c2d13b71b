"""Results of a comparison: kept in files, and reported in Markdown tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..data.audit import Finding
from ..evaluation.comparison import SMALLEST_P, UserResults, holm, paired_difference
from ..evaluation.ranking import SAMPLED_METRICS, bootstrap_interval, how_sampled, ndcg_gains
from ..hub.model_card import markdown_table

COLUMNS = """\
- 95 %: bootstrap interval of NDCG@10 over users.
- coverage: share of the catalog that is recommended to at least one user.
- popularity: how often a recommended item occurs in training, as a multiple of how often a target does.
- ties: share of the users whose target has the same score as another item.
- training: seconds on processes × threads.
- GB: peak memory of the process that evaluated the model, and trained it unless it was trained before."""

Results = Mapping[str, "ModelResult"]
Published = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(kw_only=True)
class ModelResult:
    """Evaluation of one model on a split, kept as a JSON file and the results of its users as NPZ."""

    settings: dict[str, Any]  # all that determines the result: options, split, data and weights
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
    def load(cls, folder: str, name: str) -> Self:
        """Read `name.json` and `name.npz`."""
        values = json.loads(Path(folder, f"{name}.json").read_text(encoding="utf-8"))
        with np.load(Path(folder, f"{name}.npz")) as arrays:
            return cls(**values, users=UserResults(**arrays))

    def save(self, folder: str, name: str) -> None:
        """Write `name.npz`, then `name.json`: a result is complete if the latter exists."""
        values = dict(vars(self))
        arrays = {key: value for key, value in vars(values.pop("users")).items() if value is not None}
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.savez_compressed(Path(folder, f"{name}.npz"), **arrays)
        Path(folder, f"{name}.json").write_text(json.dumps(values, indent=1), encoding="utf-8")


def format_report(
    split: str, results: Results, groups: Mapping[str, np.ndarray], published: Published, findings: Sequence[Finding]
) -> str:
    """Return the report of a comparison, Markdown.

    Args:
        split: The evaluated split.
        results: Name of the model → result.
        groups: Name of a group → mask of its users, as from `user_groups`.
        published: As in `Comparison`.
        findings: Audit of the histories.
    """
    first = next(iter(results.values()))
    number = f"{len(first.users.ranks):,} users"
    parts = [f"Protocol: {split}, {first.protocol}; {number}.", metrics_table(results), COLUMNS]
    if table := sampled_metrics_table(results, published):
        parts += [f"Protocol: {split}, {first.sampled_protocol}; {number}. Never compare these with the above.", table]
    parts += [groups_table(results, groups), differences_table(results)]
    if leaks := [f"- {finding}" for finding in findings if finding.leak and len(finding.rows)]:
        parts += ["**Leaks**, or interactions that a user repeated at the same time:", "\n".join(leaks)]
    else:
        parts += ["The audit found no leaks."]
    parts += ["Properties of the split:", "\n".join(f"- {finding}" for finding in findings if not finding.leak)]
    return "\n\n".join(parts) + "\n"


def metrics_table(results: Results) -> str:
    """Return metrics over the whole catalog and costs, one row per model."""
    names = ("HR@10", "NDCG@10", "95 %", "MRR@10", "coverage", "popularity", "ties", "training", "users/s", "GB")
    rows = []
    for name, result in results.items():
        value = result.metrics
        low, high = bootstrap_interval(ndcg_gains(result.users.ranks, 10))
        rows.append(
            [
                name,
                f"{value['hr@10']:.4f}",
                f"{value['ndcg@10']:.4f}",
                f"{low:.4f} to {high:.4f}",
                f"{value['mrr@10']:.4f}",
                f"{value['coverage@10']:.3f}",
                f"{value['popularity@10']:.2f}",
                f"{value['ties']:.3f}",
                f"{result.training_seconds:,.0f} s on {result.processes} × {result.threads}",
                f"{result.users_per_second:,.0f}",
                f"{result.peak_gb:.2f}",
            ]
        )
    return markdown_table(["model", *names], rows)


def sampled_metrics_table(results: Results, published: Published) -> str:
    """Return metrics among sampled candidates, the published ones next to them; "" if no result has any."""
    sampled = next(filter(None, (how_sampled(result.metrics) for result in results.values())), None)
    if sampled is None:
        return ""
    rows = []
    for name in dict.fromkeys([*results, *published]):
        if name in results:
            rows.append([name, *(f"{results[name].metrics[f'{metric}_{sampled}']:.4f}" for metric in SAMPLED_METRICS)])
        for source, values in published.get(name, {}).items():
            given = (f"{values[metric]:.4f}" if metric in values else "" for metric in SAMPLED_METRICS)
            rows.append([f"{name} in {source}", *given])
    return markdown_table(["model", *map(str.upper, SAMPLED_METRICS)], rows)


def groups_table(results: Results, groups: Mapping[str, np.ndarray]) -> str:
    """Return NDCG@10 per group of users, one row per model. Empty groups are not listed."""
    groups = {name: users for name, users in groups.items() if users.any()}
    rows = []
    for name, result in results.items():
        gains = ndcg_gains(result.users.ranks, 10)
        rows.append([name, *(f"{gains[users].mean():.4f}" for users in groups.values())])
    return markdown_table(["NDCG@10", *(f"{name} ({users.sum():,})" for name, users in groups.items())], rows)


def differences_table(results: Results) -> str:
    """Return the difference of NDCG@10 for each pair of models, with p-values corrected for the number of pairs."""
    ranked = sorted(results, key=lambda name: -results[name].metrics["ndcg@10"])
    pairs = {pair: paired_difference(*(results[name].users.ranks for name in pair)) for pair in combinations(ranked, 2)}
    corrected = holm({pair: difference.p for pair, difference in pairs.items()})
    rows = []
    for pair, found in pairs.items():
        p = f"{'≤ ' if found.p == SMALLEST_P else ''}{corrected[pair]:.4f}"
        rows.append([" − ".join(pair), f"{found.mean:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}", p])
    header = ["difference of NDCG@10", "", "95 %, this pair", f"p, corrected for {len(pairs)} pairs"]
    return markdown_table(header, rows)
