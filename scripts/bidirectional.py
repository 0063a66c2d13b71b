r"""Measure gaps, surprise, explanations and rules of the pipeline, and print one JSON line per compared method.

    python scripts/bidirectional.py split ml-1m.txt runs/train.txt runs/others.txt
    hf-bert4rec train scripts/configs/ml-1m.yaml --data runs/train.txt --output_dir runs/bert \
      --per_device_train_batch_size 128
    hf-bert4rec train scripts/configs/sasrec-ml-1m.yaml --data runs/train.txt --output_dir runs/sasrec
    python scripts/bidirectional.py fill runs/others.txt runs/train.txt runs/bert/model runs/sasrec/model
    python scripts/bidirectional.py surprise runs/others.txt runs/train.txt runs/bert/model runs/sasrec/model
    python scripts/bidirectional.py explain runs/others.txt runs/bert/model
    python scripts/bidirectional.py rules ml-1m.txt movies.dat model_cards/bert4rec-ml1m rules.png

`split` writes the interactions of every tenth user to a log of their own, on which no model is trained. `fill`,
`surprise` and `explain` use these users. Like the models, the baselines are trained without the last two items of each
user of the training log. Draws have seed 0. Intervals are 95 % bootstrap intervals over users.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Sequence
from inspect import signature
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads make small models much slower

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import rankdata
from tqdm.auto import tqdm

import hf_bert4rec
from hf_bert4rec import (
    NextItemRecommendationPipeline,
    at_most,
    boost,
    diversify,
    load_interactions,
    load_titles,
    rename_items,
)
from hf_bert4rec.evaluation.ranking import bootstrap_interval, ndcg_gains
from hf_bert4rec.models.configuration_bert4rec import SPECIAL_TOKENS

GAPS = 5  # per user
SMOOTHING = (1, 10, 100, 1000)
INJECTED = 0.05  # share of the items of a user that are replaced
DELETED = (1, 2, 3, 5, 10)  # numbers of items that are removed
EXPLAINED, NEWEST, DRAWS = 500, 50, 5  # users, newest items of each, and random orders
LISTS = 10  # items of a list of recommendations

Histories = list[list[str]]


def read_histories(log: str, item_ids: str) -> Histories:
    """Return the items of each user of a log, oldest first, with the IDs of the model."""
    table = rename_items(load_interactions(log), load_titles(item_ids, item=0, title=1)).to_pandas()
    return [list(items) for _, items in table.groupby("user", sort=False)["item"]]


def split(log: str, train: str, others: str, item_ids: str) -> None:
    """Write the interactions of every tenth user to one file and the others to another one, with the same IDs."""
    table = load_interactions(log).to_pandas()
    chosen = pd.factorize(table["user"])[0] % 10 == 9
    for file, rows in ((train, table[~chosen]), (others, table[chosen])):
        rows[["user", "item"]].to_csv(file, sep=" ", header=False, index=False)


# --------------------------------------------------------------------------------------------------------------- gaps


class TwoSidedChain:
    """First-order Markov chain from both sides: P(item | left) * P(right | item), smoothed with the popularity."""

    def __init__(self, histories: Histories, items: Sequence[str], smoothing: float) -> None:
        places = {item: place for place, item in enumerate(items)}
        self.counts = np.zeros((len(items), len(items)), np.float32)
        totals = np.zeros(len(items))
        for history in histories:
            rows = [places[item] for item in history if item in places]
            np.add.at(self.counts, (rows[:-1], rows[1:]), 1)
            np.add.at(totals, rows, 1)
        self.share = totals / totals.sum()
        self.next_of = self.counts.sum(axis=1)
        self.smoothing, self.places = smoothing, places

    def scores(self, left: str, right: str | None) -> np.ndarray:
        """Return log-probabilities of all items up to a constant; of one side only if `right` is None."""
        place = self.places.get(left)
        follows = self.counts[place] if place is not None else 0
        scores = np.log(follows + self.smoothing * self.share + 1e-12)
        if right in self.places:
            after = self.places[right]
            shares = (self.counts[:, after] + self.smoothing * self.share[after]) / (self.next_of + self.smoothing)
            scores = scores + np.log(shares + 1e-12)
        return scores

    def rank(self, history: list[str], gap: int, two_sided: bool) -> float:
        """Return the rank of the item at a gap among the items that are not elsewhere in the history."""
        scores = self.scores(history[gap - 1], history[gap + 1] if two_sided else None)
        target = self.places.get(history[gap])
        if target is None:
            return float(len(self.places))
        own = scores[target]
        others = [self.places[item] for item in history if item in self.places and item != history[gap]]
        scores[others] = -np.inf
        scores[target] = -np.inf
        return float(1 + (scores > own).sum() + (scores == own).sum() / 2)


def draw_gaps(histories: Histories, seed: int = 0) -> list[tuple[int, int]]:
    """Return history and place of up to five items of each user, without the first and the last one."""
    random = np.random.default_rng(seed)
    return [
        (user, int(place))
        for user, history in enumerate(histories)
        if len(history) > 2
        for place in sorted(random.choice(np.arange(1, len(history) - 1), min(GAPS, len(history) - 2), replace=False))
    ]


def place_of(answer: Sequence[Any], item: str, items: int) -> float:
    """Return the rank of an item in a list of recommendations, or the number of items if it is not there."""
    return next((rank for rank, row in enumerate(answer, 1) if row["item"] == item), items)


def fill(log: str, train: str, model: str, causal: str, item_ids: str) -> None:
    """Measure NDCG@10 of the items at gaps, by what is read: both sides, or one."""
    histories, trained = read_histories(log, item_ids), [it[:-2] for it in read_histories(train, item_ids)]
    recommender, sasrec = hf_bert4rec.pipeline(model), hf_bert4rec.pipeline(causal)
    items = recommender.tokenizer.items.to_pylist()
    gaps = draw_gaps(histories)
    held_out = trained[::10]  # chooses the smoothing
    rest = [history for place, history in enumerate(trained) if place % 10]
    checks = draw_gaps(held_out)
    best = {}
    for two_sided in (True, False):
        ndcg = {}
        for smoothing in SMOOTHING:
            chain = TwoSidedChain(rest, items, smoothing)
            ndcg[smoothing] = ndcg_gains([chain.rank(held_out[u], p, two_sided) for u, p in checks], 10).mean()
        best[two_sided] = max(ndcg, key=ndcg.__getitem__)
    parts = [(histories[u][:p], histories[u][p], histories[u][p + 1 :]) for u, p in gaps]
    options = {"top_k": LISTS, "exclude_history": True}
    excluded = [left + right for left, _, right in parts]
    excluded = [[it for it in of if it != target] for of, (_, target, _) in zip(excluded, parts, strict=True)]
    both = recommender.fill([[*left, None, *right] for left, _, right in parts], **options)
    one_side = recommender.fill([[*left, None] for left, _, _ in parts], deny=excluded, **options)
    right_side = recommender.fill([[None, *right] for _, _, right in parts], deny=excluded, **options)
    answers = {
        "BERT4Rec, both sides": [of[0] for of in both],
        "BERT4Rec, left side": [of[0] for of in one_side],
        "BERT4Rec, right side": [of[0] for of in right_side],
        "SASRec, left side": sasrec([left for left, _, _ in parts], deny=excluded, **options),
    }
    ranks = {
        name: [place_of(answer, target, len(items)) for answer, (_, target, _) in zip(of, parts, strict=True)]
        for name, of in answers.items()
    }
    for name, two_sided in (("Markov chain, both sides", True), ("Markov chain, left side", False)):
        chain = TwoSidedChain(trained, items, best[two_sided])
        ranks[name] = [chain.rank(histories[u], p, two_sided) for u, p in gaps]
    users = np.array([user for user, _ in gaps])
    gains = {name: per_user(ndcg_gains(of, LISTS), users) for name, of in ranks.items()}
    hits = {name: per_user((np.array(of) <= LISTS).astype(float), users) for name, of in ranks.items()}
    for name, of in gains.items():
        line = {"measured": "fill", "model": name, "users": len(of), "gaps": len(gaps), "ndcg@10": of.mean()}
        line |= {"interval": bootstrap_interval(of), "hr@10": hits[name].mean()}
        difference = gains["BERT4Rec, both sides"] - of
        write(line | {"difference": difference.mean(), "difference_interval": bootstrap_interval(difference)})


def per_user(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Return the mean of the values of each user."""
    return pd.Series(values).groupby(users).mean().to_numpy()


# ----------------------------------------------------------------------------------------------------------- surprise


def surprise(log: str, train: str, model: str, causal: str, item_ids: str) -> None:
    """Measure how well injected items are found: the area under the ROC curve over all items of all users."""
    histories, trained = read_histories(log, item_ids), [it[:-2] for it in read_histories(train, item_ids)]
    recommender, sasrec = hf_bert4rec.pipeline(model), hf_bert4rec.pipeline(causal)
    counts = pd.Series([item for history in trained for item in history]).value_counts()
    ranked = counts.index.to_numpy()
    places = {item: place for place, item in enumerate(ranked)}
    random = np.random.default_rng(0)
    changed, labels = [], []
    for history in histories:
        new = [item for item in history if item in places]
        assert new, "Each user needs an item of the training log."
        label = np.zeros(len(new), bool)
        for place in random.choice(len(new), max(1, round(INJECTED * len(new))), replace=False):
            near = ranked[max(0, places[new[place]] - 20) : places[new[place]] + 21]  # of about the same popularity
            others = [item for item in near if item not in new]
            if others:
                new[place], label[place] = str(random.choice(others)), True
        changed.append(new)
        labels.append(label)
    found = recommender.surprise(changed)
    unconditional = dict(zip(recommender.tokenizer.items.to_pylist(), log_softmax(recommender, [[]])[0], strict=True))
    given_others = [np.array([row["log_probability"] for row in of]) for of in found]
    scores = {
        "BERT4Rec, given all others": [-of for of in given_others],
        "BERT4Rec, given all others, minus unconditional": [
            np.array([unconditional[item] for item in history]) - of
            for history, of in zip(changed, given_others, strict=True)
        ],
        "BERT4Rec, left to right": [-left_to_right(recommender, history) for history in tqdm(changed, desc="left")],
        "SASRec, left to right": [-left_to_right(sasrec, history) for history in tqdm(changed, desc="SASRec")],
        "popularity": [-np.log(counts[history].to_numpy()) for history in changed],
    }
    draws = np.random.default_rng(0).integers(len(histories), size=(1000, len(histories)))
    areas = {
        name: np.array([area([of[i] for i in draw], [labels[i] for i in draw]) for draw in tqdm(draws, desc=name)])
        for name, of in scores.items()
    }
    for name, of in scores.items():
        line = {"measured": "surprise", "method": name, "users": len(of), "items": sum(map(len, of))}
        line |= {"injected": int(sum(label.sum() for label in labels)), "auc": area(of, labels)}
        ends = (0.025, 0.975)
        difference = areas["BERT4Rec, given all others"] - areas[name]
        line |= {"interval": np.quantile(areas[name], ends).tolist()}
        write(line | {"difference_interval": np.quantile(difference, ends).tolist()})


def log_softmax(recommender: NextItemRecommendationPipeline, histories: Histories) -> np.ndarray:
    """Return the log-probabilities of all items after histories, (histories, items)."""
    logits = recommender.encode(histories) @ recommender.item_vectors().T
    return torch.from_numpy(logits).log_softmax(dim=1).numpy()


def left_to_right(recommender: NextItemRecommendationPipeline, history: list[str]) -> np.ndarray:
    """Return the log-probability of each item given the items before it."""
    rows = recommender.catalog.known_rows(history, "history") - len(SPECIAL_TOKENS)
    return log_softmax(recommender, [history[:place] for place in range(len(history))])[np.arange(len(rows)), rows]


def area(scores: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> float:
    """Return the area under the ROC curve: the share of pairs in which the injected item has the higher score."""
    label = np.concatenate(labels)
    ranks = rankdata(np.concatenate(scores))
    positive, negative = label.sum(), (~label).sum()
    return float((ranks[label].sum() - positive * (positive + 1) / 2) / (positive * negative))


# ------------------------------------------------------------------------------------------------------- explanations


def explain(log: str, model: str, item_ids: str) -> None:
    """Measure the fall of the log-probability of the best recommendation when items of the history are removed."""
    recommender = hf_bert4rec.pipeline(model)
    histories = [history for history in read_histories(log, item_ids) if len(history) > max(DELETED)]
    histories = [history[-NEWEST:] for history in histories[:EXPLAINED]]
    targets = [answer[0]["item"] for answer in recommender(histories, top_k=1, exclude_history=True)]
    random = np.random.default_rng(0)
    start = time.process_time()
    contributions = []
    for history, target in zip(tqdm(histories, desc="Explaining"), targets, strict=True):
        contributions.append(np.array([row["contribution"] for row in recommender.explain(history, target)]))
    seconds = (time.process_time() - start) / len(histories)
    vectors = recommender.item_vectors()[:, :-1]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place_of_item = {item: place for place, item in enumerate(recommender.tokenizer.items.to_pylist())}
    cosines = [
        vectors[[place_of_item[item] for item in history]] @ vectors[place_of_item[target]]
        for history, target in zip(histories, targets, strict=True)
    ]
    orders: dict[str, list[list[np.ndarray]]] = {
        "highest contribution first": [[np.argsort(-of, kind="stable") for of in contributions]],
        "most similar first (cosine of vectors)": [[np.argsort(-of, kind="stable") for of in cosines]],
        "newest first": [[np.arange(len(history))[::-1] for history in histories]],
        "at random": [[random.permutation(len(history)) for history in histories] for _ in range(DRAWS)],
        "lowest contribution first": [[np.argsort(of, kind="stable") for of in contributions]],
    }
    whole = log_probabilities(recommender, histories, targets)
    falls = {
        name: np.mean([fall(recommender, histories, targets, whole, order) for order in drawn], axis=0)
        for name, drawn in orders.items()
    }
    for name, of in falls.items():
        line: dict[str, Any] = {"measured": "explain", "order": name, "users": len(histories), "removed": DELETED}
        line |= {"fall": of.mean(axis=1).tolist(), "seconds": seconds}
        more = of - falls["at random"]
        write(line | {"more": more.mean(axis=1).tolist(), "more_interval": [bootstrap_interval(row) for row in more]})


def log_probabilities(
    recommender: NextItemRecommendationPipeline, histories: Histories, targets: Sequence[str]
) -> np.ndarray:
    """Return the log-probability of one item after each history."""
    answers = recommender(histories, allow=[[target] for target in targets], top_k=1, exclude_history=False)
    return np.log([answer[0]["score"] for answer in answers])


def fall(
    recommender: NextItemRecommendationPipeline,
    histories: Histories,
    targets: Sequence[str],
    whole: np.ndarray,
    orders: Sequence[np.ndarray],
) -> np.ndarray:
    """Return the fall of the log-probability without the first 1, 2, 3, 5 and 10 items of orders, (numbers, users)."""
    rows = []
    for number in DELETED:
        gone = [set(order[:number].tolist()) for order in orders]
        shorter = [
            [item for place, item in enumerate(history) if place not in of]
            for history, of in zip(histories, gone, strict=True)
        ]
        rows.append(whole - log_probabilities(recommender, shorter, targets))
    return np.array(rows)


# -------------------------------------------------------------------------------------------------------------- rules


def rules(log: str, movies: str, model: str, image: str, item_ids: str) -> None:
    """Measure quality, coverage and diversity of the lists of each rule, on the test items of leave-one-out.

    The plot shows rules with the default number of candidates.
    """
    recommender = hf_bert4rec.pipeline(model)
    histories = read_histories(log, item_ids)
    options = {"sep": "::", "engine": "python", "encoding": "latin-1", "names": ["item", "title", "genres"]}
    table = pd.read_csv(movies, **options).astype({"item": str})
    counts = pd.Series([item for history in histories for item in history[:-2]]).value_counts()
    table["interactions"] = table["item"].map(counts).fillna(0)
    attributes = hf_bert4rec.ItemAttributes(table[["item", "genres", "interactions"]])
    lists: dict[str, dict[str, Any]] = {"no rule": {}}
    lists |= {f"at most {number} per genre": {"rerank": at_most(number, "genres")} for number in (1, 2, 3)}
    for number in (2, 3):
        name = f"at most {number} per genre, from 1,000 candidates"
        lists[name] = {"rerank": at_most(number, "genres"), "candidates": 1000}
    lists |= {f"diversity, weight {weight}": {"rerank": diversify(weight)} for weight in (0.1, 0.2, 0.3, 0.5, 0.7)}
    rare = {"interactions": lambda count: count < counts.median()}
    lists |= {f"rare items times {factor}": {"rerank": boost(rare, factor)} for factor in (2, 5)}
    vectors = recommender.item_vectors()[:, :-1]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    places = {item: place for place, item in enumerate(recommender.tokenizer.items.to_pylist())}
    genres = dict(zip(table["item"], table["genres"].str.split("|"), strict=True))
    lines: list[dict[str, Any]] = []
    without = np.empty(0)
    recommender(histories[:512], top_k=LISTS)  # the first calls are slower
    for name, rule in lists.items():
        start = time.process_time()
        answers = recommender([history[:-1] for history in histories], attributes=attributes, **rule)
        seconds = time.process_time() - start
        ranks = [place_of(of, history[-1], len(places)) for of, history in zip(answers, histories, strict=True)]
        gains = ndcg_gains(ranks, LISTS)
        without = without if lines else gains
        items = [[places[row["item"]] for row in answer] for answer in answers]
        distances = [1 - vectors[of] @ vectors[of].T for of in items if len(of) > 1]
        line = {"measured": "rules", "rule": name, "users": len(ranks), "ndcg@10": gains.mean()}
        line |= {"interval": bootstrap_interval(gains), "difference": (without - gains).mean()}
        line |= {
            "difference_interval": bootstrap_interval(without - gains),
            "coverage": len(set().union(*items)) / len(places),
        }
        line |= {"diversity": np.mean([of[np.triu_indices(len(of), 1)].mean() for of in distances])}
        line |= {"genres": np.mean([len({it for row in of for it in genres[row["item"]]}) for of in answers])}
        line |= {"short": sum(len(of) < LISTS for of in answers), "users_per_second": len(ranks) / seconds}
        lines.append(line)
        write(line)
    plot(lines, image)


def plot(lines: Sequence[dict[str, Any]], image: str) -> None:
    """Plot NDCG@10 over genres per list and over coverage: one line per rule, with its settings at the points."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    titles = {"genres": "different genres in a list", "coverage": "share of the items that are in any list"}
    families: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for line in [line for line in lines if "candidates" not in line["rule"]]:
        setting = "".join(re.findall(r"[\d.]+", line["rule"]))
        families.setdefault(re.sub(r"[\d.]+", "n", line["rule"]), []).append((setting, line))
    for axes, name in zip(figure.subplots(1, 2, sharey=True), titles, strict=True):
        for family, points in families.items():
            axes.plot([line[name] for _, line in points], [line["ndcg@10"] for _, line in points], "o-", label=family)
            for setting, line in points:
                axes.annotate(setting, (line[name], line["ndcg@10"]), (5, 5), textcoords="offset points", fontsize=8)
        axes.set_xlabel(titles[name])
        axes.margins(0.1)
    figure.axes[0].set_ylabel("NDCG@10")
    figure.axes[0].legend()
    figure.savefig(image, dpi=120)


def write(line: dict[str, Any]) -> None:
    """Print a line of JSON with five digits after the point."""
    rounded = json.loads(json.dumps(line, default=float), parse_float=lambda text: round(float(text), 5))
    print(json.dumps(rounded, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands: dict[str, Any] = {it.__name__: it for it in (split, fill, surprise, explain, rules)}
    parser.add_argument("measurement", choices=commands)
    parser.add_argument("arguments", nargs="+", help="files and folders, in the order of the examples above")
    text = "table that renames the items of a log: ID in the log, ID in the model (%(default)s)"
    parser.add_argument("--item_ids", default="data/ml-1m/items.tsv", help=text)
    given = parser.parse_args()
    needed = [*signature(commands[given.measurement]).parameters][:-1]  # without `item_ids`
    if len(given.arguments) != len(needed):
        parser.error(f"{given.measurement} needs {', '.join(needed)}, found {len(given.arguments)} arguments.")
    commands[given.measurement](*given.arguments, item_ids=given.item_ids)
