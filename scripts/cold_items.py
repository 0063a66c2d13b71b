"""Measure how well a model recommends items without interactions, by their features.

    python scripts/cold_items.py ratings.csv movies.csv scripts/results/cold-items.jsonl --features true

A tenth of the items, drawn in ten bands of popularity with a seed, is removed from the log. A model is trained on the
rest with the settings that are recommended for it. The evaluated users are those whose last item was removed. This item
is the target, ranked among the removed items and among all items. Items of the history are excluded.

The model is compared with chance, with neighbors in feature space (cosine of an item and the mean of the history, or of
its last ten items), and with the mean vector of all items, which gives removed items the same score. `--features false`
trains without features, which shows what features change for the other items.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import set_seed

from hf_bert4rec import (
    Bert4RecConfig,
    Bert4RecForMaskedLM,
    ItemTokenizer,
    RecommendationTrainer,
    RecommendationTrainingArguments,
    cloze_training,
    initialize_items,
    item_tokenizer,
    leave_one_out,
    load_interactions,
    load_item_features,
    recommended_settings,
)

BANDS, SHARE = 10, 0.1
RECENT = 10  # items of the history that the second kind of neighbors reads


def read_table(file: Path) -> pd.DataFrame:
    """Read features. Each key of a JSON object is an item. A year at the end of a title becomes a column."""
    if file.suffix == ".json":
        attributes = json.loads(file.read_text(encoding="utf-8"))
        return pd.DataFrame({"item": [*attributes], "attributes": [list(map(str, it)) for it in attributes.values()]})
    table = pd.read_csv(file, sep=None, engine="python")
    table = table.rename(columns={"movieId": "item"}).drop(columns="movie_id", errors="ignore")
    if "title" in table:
        table["year"] = table["title"].str.extract(r"\((\d{4})\)\s*$").astype(float)
        table["title"] = table["title"].str.replace(r"\s*\(\d{4}\)\s*$", "", regex=True)
    return table


def draw_removed(items: pd.Series, seed: int) -> set[str]:
    """Return a tenth of the items, drawn in bands of popularity."""
    random = np.random.default_rng(seed)
    bands = np.array_split(items.value_counts().index.to_numpy(), BANDS)
    return {item for band in bands for item in random.choice(band, max(1, round(SHARE * len(band))), replace=False)}


def ndcg(scores: torch.Tensor, targets: torch.Tensor, candidates: torch.Tensor) -> float:
    """Return NDCG@10 of targets (users,) for scores (users, vocab_size), ranked among candidates after all ties."""
    own = scores.gather(1, targets[:, None])
    others = scores[:, candidates].masked_fill(candidates == targets[:, None], -torch.inf)
    ranks = 1 + (others >= own).sum(dim=1)
    return round(float(torch.where(ranks <= 10, 1 / torch.log2(ranks + 1), 0).mean()), 5)


def scores_of(model: Bert4RecForMaskedLM, histories: list[np.ndarray], tokenizer: ItemTokenizer) -> torch.Tensor:
    """Return the scores of all token IDs for histories of token IDs, (users, vocab_size)."""
    rows = []
    with torch.no_grad():
        for history in histories:
            inputs = torch.from_numpy(np.append(history[1 - tokenizer.model_max_length :], tokenizer.mask_token_id))
            rows.append(model(inputs[None], torch.ones_like(inputs)[None], logits_to_keep=1).logits[0, 0])
    return torch.stack(rows)


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Train and evaluate, and return the line of the results."""
    options = {"text": ["title"], "encoder": args.encoder} if args.encoder else {}
    table = read_table(args.table)
    features = load_item_features(table if args.encoder else table.drop(columns="title", errors="ignore"), **options)
    log = load_interactions(str(args.log)).to_pandas().sort_values(["user", "timestamp"], kind="stable")
    removed = draw_removed(log["item"], args.seed)
    cold = log["item"].isin(removed)
    kept = Dataset.from_pandas(log[~cold], preserve_index=False)
    settings = recommended_settings(kept)
    tokenizer = item_tokenizer(log["item"].unique().tolist(), features=features)
    known = features.vectors(tokenizer.items)[:, 1:]
    if not args.features:
        tokenizer.features = None
    splits = leave_one_out(kept, tokenizer, **settings.splitting)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    set_seed(args.seed)
    model = Bert4RecForMaskedLM(Bert4RecConfig(**sizes, **settings.model))
    initialize_items(model, splits["train"])
    choices = {"id_dropout": args.id_dropout, "seed": args.seed, "report_to": []} | settings.training
    if args.epochs:
        choices["num_train_epochs"] = args.epochs
    folder = Path("runs", f"cold-{args.log.stem}-{args.features}-{args.encoder is not None}-{args.id_dropout}")
    trainer = RecommendationTrainer(
        model,
        RecommendationTrainingArguments(str(folder), **choices),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        **cloze_training(tokenizer, **settings.masking),
    )
    trainer.train()
    validation, test = (trainer.evaluate(splits[name])["eval_ndcg@10"] for name in ("validation", "test"))
    last = log.groupby("user").tail(1)
    targets = dict(zip(last["user"], last["item"], strict=True))
    groups = log[~cold & log["user"].isin(last["user"][last["item"].isin(removed)])].groupby("user")["item"]
    histories = {str(user): tokenizer.encode_items(items).astype(np.int64) for user, items in groups}
    rows = torch.from_numpy(tokenizer.encode_items([targets[user] for user in histories])).long()
    among = torch.from_numpy(np.sort(tokenizer.encode_items(removed))).long()
    every = torch.arange(len(tokenizer) - len(tokenizer.items), len(tokenizer))
    lengths = np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-9)
    unit = torch.from_numpy(np.pad(known / lengths, ((len(tokenizer) - len(known), 0), (0, 0)))).float()
    scores = {"model": scores_of(model.eval(), list(histories.values()), tokenizer)}
    for name, number in (("neighbors of the history", 0), (f"neighbors of the last {RECENT}", RECENT)):
        scores[name] = torch.stack([unit @ unit[items[-number:]].mean(dim=0) for items in histories.values()])
    for values in scores.values():
        for user, items in enumerate(histories.values()):
            values[user, torch.from_numpy(items)] = -torch.inf
    return {
        "log": args.log.stem,
        "features": [*features.columns] if args.features else None,
        "id_dropout": args.id_dropout if args.features else None,
        "removed": len(removed),
        "users": len(histories),
        "among removed": {name: ndcg(values, rows, among) for name, values in scores.items()}
        | {"chance": round(sum(1 / np.log2(rank + 1) for rank in range(1, 11)) / len(removed), 5), "mean vector": 0.0},
        "among all": {name: ndcg(values, rows, every) for name, values in scores.items()},
        "other items": {"validation": round(validation, 5), "test": round(test, 5)},
        "seconds": round(trainer.run_facts().seconds or 0),
        "seed": args.seed,
    }


def main() -> None:
    """Measure, and append a line to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="log of interactions")
    parser.add_argument("table", type=Path, help="table of features, or JSON object: item -> list of attributes")
    parser.add_argument("results", type=Path, help="JSON Lines file, to which one line is appended")
    parser.add_argument("--features", choices=("true", "false"), default="true", help="whether to train with features")
    parser.add_argument("--encoder", help="model of sentence-transformers for the titles (default: no titles)")
    text = "share of the items whose ID embedding is dropped in each training step (%(default)s)"
    parser.add_argument("--id_dropout", type=float, default=0.2, help=text)
    parser.add_argument("--epochs", type=float, help="number of epochs (default: as recommended for the log)")
    parser.add_argument("--seed", type=int, default=42, help="seed of removed items and training (%(default)s)")
    args = parser.parse_args()
    args.features = args.features == "true"
    with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(measure(args)) + "\n")


if __name__ == "__main__":
    main()
