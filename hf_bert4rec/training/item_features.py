"""Item vectors from features: an embedding per item plus a projection of its features, summed when a model is saved.

Before and after training the model is a stock model. In training, each forward pass computes item table and biases.
"""

from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from transformers import PreTrainedModel

from ..data.features import FEATURES_FILE, PROJECTION_FILE
from ..data.histories import count_items
from ..data.tokenization import ItemTokenizer
from ..hub.errors import damage_error
from ..models.configuration_bert4rec import SPECIAL_TOKENS

NO_ID = 1e-5  # largest absolute number of an ID embedding that is only a rounding error
RIDGE = 0.01  # weight of the squared projection per item, in the regression from which the projection starts


class FeatureProjection(nn.Module):
    """Item vectors and output biases, each the sum of an ID embedding and a projection of the features.

    In training, the scores of a random share `id_dropout` of the items with features are computed without the ID
    embedding, so that features alone can represent an item. Histories keep all ID embeddings. The `projection` (width,
    hidden + 1), with the biases in the last column, starts from a checkpoint, or from a ridge regression of the item
    vectors and biases of the model on the features.

    `in_training` (vocab_size,) marks the items that occur in the training rows. Other items with features use only
    their features, unless a checkpoint already has an embedding of their ID. The training loss masks these items: they
    are never a target, and their scores would only decrease.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: ItemTokenizer,
        id_dropout: float,
        in_training: torch.Tensor,
        projection: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if not model.config.tie_word_embeddings:
            raise ValueError("Item features need `tie_word_embeddings=True`. Build the model with this option.")
        assert tokenizer.features is not None
        table, bias = model.get_input_embeddings().weight.detach(), model.get_output_embeddings().bias.detach()
        self.id_dropout = id_dropout
        self.features: torch.Tensor  # (vocab_size, width), zeros for items without features
        self.described: torch.Tensor
        self.unseen: torch.Tensor
        features = torch.from_numpy(tokenizer.features.vectors(tokenizer.items))
        features = torch.cat([torch.zeros(len(SPECIAL_TOKENS), features.shape[1]), features]).to(table)
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("described", features[:, 0] > 0, persistent=False)  # the first number is 1 with features
        self.register_buffer("unseen", self.described & ~in_training.to(features.device), persistent=False)
        if projection is not None:
            _check_shape(projection, features, table)
        start = self._regression(table, bias) if projection is None else projection
        # A fused optimizer mixes up numbers if the strides of a weight differ from those of its restored state.
        self.projection = nn.Parameter(start.detach().clone(memory_format=torch.contiguous_format).to(table))
        projected = features @ self.projection.detach()
        if projection is not None:  # an item keeps the ID embedding of a checkpoint, also if these rows lack the item
            self.unseen &= (table - projected[:, :-1]).abs().amax(dim=1) < NO_ID
        # ID embeddings and projections add up to the given item table and biases, except for unseen items.
        self.ids = nn.Parameter((table - projected[:, :-1]).masked_fill(self.unseen[:, None], 0))
        self.bias = nn.Parameter((bias - projected[:, -1]).masked_fill(self.unseen, 0))

    def _regression(self, table: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        known = self.described & ~self.unseen
        if not known.any():
            advice = "Use the same item IDs in the log and in the features."
            raise ValueError(f"No item of the training rows has features. {advice}")
        features, wanted = self.features[known].float(), torch.cat([table, bias[:, None]], dim=1)[known].float()
        weight = RIDGE * len(features) * torch.eye(features.shape[1]).to(features)
        return torch.linalg.solve(features.T @ features + weight, features.T @ wanted)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the item tables for histories and for scores, (vocab_size, hidden), and the biases (vocab_size,)."""
        projected = self.features @ self.projection
        table, bias = projected[:, :-1], projected[:, -1]
        if not self.training:
            return (table := table + self.ids), table, bias + self.bias
        dropped = self.described & (torch.rand(len(bias), device=bias.device) < self.id_dropout)
        ids, bias = self.ids.masked_fill(self.unseen[:, None], 0), bias + self.bias.masked_fill(dropped, 0)
        scored = table + ids.masked_fill(dropped[:, None], 0)
        return table + ids, scored, bias.masked_fill(self.unseen, torch.finfo(bias.dtype).min)

    def attach(self, model: PreTrainedModel) -> None:
        """Let a model compute its item table and biases from IDs and features in each forward pass."""
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        for module, name in ((embeddings, "weight"), (head, "weight"), (head, "bias")):
            del module._parameters[name]
        model.item_features = self

        def compute(*_: Any) -> None:
            embeddings.weight, head.weight, head.bias = self()

        with torch.no_grad():
            compute()
        self._hook = model.base_model.register_forward_pre_hook(compute)  # which pipelines call, too

    @torch.no_grad()
    def detach(self, model: PreTrainedModel) -> torch.Tensor:
        """Make the model a stock model again, with item table and biases from `forward`; return the projection."""
        self._hook.remove()
        embeddings, head, training = model.get_input_embeddings(), model.get_output_embeddings(), self.training
        table, _, bias = map(nn.Parameter, self.eval()())
        for module, name, value in ((embeddings, "weight", table), (head, "weight", table), (head, "bias", bias)):
            delattr(module, name)
            setattr(module, name, value)
        del model.item_features
        self.train(training)
        return self.projection.detach()


def projection_file(projection: torch.Tensor | None) -> dict[str, bytes]:
    """Return a dict from the name of the file of a projection to its content; {} if `projection` is None."""
    return {} if projection is None else {PROJECTION_FILE: save({"projection": projection.detach().cpu().contiguous()})}


def load_projection(folder: str | PathLike) -> torch.Tensor | None:
    """Read the projection of a folder, (width, hidden + 1); None if the folder has no features.

    ValueError if the projection is damaged, or if only one of the two files of features is there.
    """
    projection, has_features = None, Path(folder, FEATURES_FILE).exists()
    if (file := Path(folder, PROJECTION_FILE)).exists():
        try:
            projection = load_file(file)["projection"]
        except (KeyError, SafetensorError) as error:
            raise damage_error(folder, f"{PROJECTION_FILE} is damaged") from error
    if (projection is not None) != has_features:
        advice = "Download or copy the checkpoint again with all files. Before a Trainer saves a loaded model, set "
        advice += "`trainer.projection = load_projection(folder)`."
        raise damage_error(folder, f"{PROJECTION_FILE if has_features else FEATURES_FILE} is missing", advice)
    return projection


@torch.no_grad()
def start_from_features(
    model: PreTrainedModel, tokenizer: ItemTokenizer, items: torch.Tensor, projection: torch.Tensor | None
) -> torch.Tensor:
    """Set the vectors and biases of items with features to the projection of their features, in place.

    `items` (number,) are token IDs. Return which of them have features, (number,); none without features or projection.
    """
    if projection is None or tokenizer.features is None:
        return torch.zeros(len(items), dtype=torch.bool)
    ids = tokenizer.items.take(pa.array((items - len(SPECIAL_TOKENS)).numpy()))
    features, table = torch.from_numpy(tokenizer.features.vectors(ids)), model.get_input_embeddings().weight
    _check_shape(projection, features, table)
    described = features[:, 0] > 0
    projected = features[described] @ projection.float().cpu()
    table[items[described]] = projected[:, :-1].to(table)  # also the output matrix: models with features have one table
    model.get_output_embeddings().bias[items[described]] = projected[:, -1].to(table)
    return described


def _check_shape(projection: torch.Tensor, features: torch.Tensor, table: torch.Tensor) -> None:
    shape = features.shape[1], table.shape[1] + 1
    if projection.shape != shape:
        needed = f"but {FEATURES_FILE} and the model need {shape}"
        advice = "For another catalog, call `load_item_features(..., like=tokenizer.features)`."
        found = f"{PROJECTION_FILE} has the shape {tuple(projection.shape)}, {needed}"
        raise ValueError(f"{found}. Use the files and the model of one checkpoint. {advice}")


def items_in(rows: Any, vocab_size: int) -> torch.Tensor:
    """Return whether each token ID is in the training rows, (vocab_size,); all True if `rows` is no `Dataset`."""
    if not isinstance(rows, Dataset):
        return torch.ones(vocab_size, dtype=torch.bool)
    return torch.from_numpy(count_items(rows, vocab_size) > 0)
