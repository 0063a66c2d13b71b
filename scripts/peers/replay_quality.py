"""Measure validation NDCG@10 of RePlay's BERT4Rec over training time, as one line of a study (scripts/study.py).

    python scripts/peers/replay_quality.py data/ml-1m/ml-1m.txt scripts/results/quality.jsonl --minutes 12

It runs in an environment with replay-rec, lightning and torch, without hf-bert4rec. Tokenizer, datasets, loss and
optimizer are those of RePlay (Adam at 1e-3 without a schedule, not tuned). These settings differ from its defaults:

- the sizes of the model, a mask probability of 0.2 and the item table tied to the output, as in our model;
- windows that overlap by half, so that early interactions are trained on, too;
- `CE_restricted`, the fastest of its full softmaxes.

The evaluation is ours: strict leave-one-out, the validation item of each user ranked among all items, history excluded,
ties shared. The catalog has the items of training; targets that are not among them rank last. The time of evaluations
is not counted.
"""

import argparse
import json
import logging
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from replay.data import Dataset, FeatureHint, FeatureInfo, FeatureSchema, FeatureSource, FeatureType
from replay.data.nn import SequenceTokenizer, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.sequential.bert4rec import Bert4Rec, Bert4RecPredictionDataset, Bert4RecTrainingDataset
from torch.utils.data import DataLoader

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", help="file of `user item` lines, a user's lines in time order")
parser.add_argument("results", help="file of JSON lines to append to")
parser.add_argument("--minutes", type=float, default=12)
parser.add_argument("--evaluations", type=int, default=8)
parser.add_argument("--length", type=int, default=100)
parser.add_argument("--batch", type=int, default=64)
args = parser.parse_args()
torch.manual_seed(0)
torch.set_num_threads(1)

table = pd.read_csv(args.data, sep=" ", names=["user_id", "item_id"])
table["timestamp"] = np.arange(len(table))
newest = table.groupby("user_id").cumcount(ascending=False)  # 0 = test, 1 = validation
table = table[table.groupby("user_id")["item_id"].transform("size") >= 3]  # users with fewer have no target
past, targets = table[newest >= 2], table[newest == 1].set_index("user_id")["item_id"]

columns = FeatureSchema(
    [
        FeatureInfo("user_id", FeatureType.CATEGORICAL, feature_hint=FeatureHint.QUERY_ID),
        FeatureInfo("item_id", FeatureType.CATEGORICAL, feature_hint=FeatureHint.ITEM_ID),
        FeatureInfo("timestamp", FeatureType.NUMERICAL, feature_hint=FeatureHint.TIMESTAMP),
    ]
)
source = TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")
item = TensorFeatureInfo(
    "item_id",
    FeatureType.CATEGORICAL,
    is_seq=True,
    feature_sources=[source],
    feature_hint=FeatureHint.ITEM_ID,
    embedding_dim=64,
)
tokens = SequenceTokenizer(TensorSchema(item), allow_collect_to_master=True)
sequences = tokens.fit_transform(Dataset(feature_schema=columns, interactions=past))
rows = tokens.query_and_item_id_encoder.mapping
user_rows, item_rows = rows["user_id"], rows["item_id"]
model = Bert4Rec(
    tokens.tensor_schema,
    block_count=2,
    head_count=2,
    hidden_size=64,
    max_seq_len=args.length,
    enable_embedding_tying=True,
    loss_type="CE_restricted",
)
history = {user_rows[user]: [item_rows[i] for i in items] for user, items in past.groupby("user_id")["item_id"]}
# a target that never occurs in training has no row: it ranks last
target = {user_rows[user]: item_rows.get(i, -1) for user, i in targets.items() if user in user_rows}
training = DataLoader(
    Bert4RecTrainingDataset(
        sequences, max_sequence_length=args.length, mask_prob=0.2, sliding_window_step=args.length // 2
    ),
    batch_size=args.batch,
    shuffle=True,
)
evaluation_rows = DataLoader(Bert4RecPredictionDataset(sequences, max_sequence_length=args.length), batch_size=256)


@torch.inference_mode()
def evaluate() -> float:
    """Return validation NDCG@10."""
    model.eval()
    gains = 0.0
    for number, batch in enumerate(evaluation_rows):
        scores = model.predict_step(batch, number)
        for user, row in zip(batch["query_id"].flatten().tolist(), scores, strict=True):
            if target[user] >= 0:
                score = row[target[user]].clone()
                row[history[user]] = -torch.inf
                row[target[user]] = score
                better, equal = int((row > score).sum()), int((row == score).sum())
                rank = 1 + better + (equal - 1) / 2  # ties are shared, as in the package
                gains += 1 / np.log2(rank + 1) if rank <= 10 else 0
    model.train()
    return gains / len(targets)


class Curve(lightning.Callback):
    """Evaluate at equal intervals of time, and stop after the last evaluation."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float, float]] = []
        self.paused, self.started = 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *batch: Any) -> None:
        """Evaluate if the time of the next evaluation has come."""
        seconds = time.perf_counter() - self.started - self.paused
        if seconds >= 60 * args.minutes * (len(self.points) + 1) / args.evaluations:
            before = time.perf_counter()
            self.points.append((trainer.global_step, round(seconds, 1), round(evaluate(), 5)))
            print(*self.points[-1], flush=True)
            self.paused += time.perf_counter() - before
            trainer.should_stop = len(self.points) == args.evaluations


curve = Curve()
lightning.Trainer(
    max_epochs=-1,
    accelerator="cpu",
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[curve],
).fit(model, training)
line = {
    "study": "quality",
    "variant": f"RePlay {version('replay-rec')}, not tuned",
    "seed": 0,
    "options": {"batch": args.batch, "length": args.length},
    "curve": curve.points,
    "ndcg@10": curve.points[-1][2],
    "threads": 1,
    "versions": {"replay-rec": version("replay-rec"), "torch": version("torch")},
}
with Path(args.results).open("a", encoding="utf-8") as file:
    file.write(json.dumps(line) + "\n")
