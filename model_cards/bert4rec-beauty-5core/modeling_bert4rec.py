"""BERT4Rec: a bidirectional Transformer encoder of a user's history, with a masked-item head.

The parts of a model are in `inputs.py`, `layers.py`, `heads.py` and `item_loss.py`. Differences from BERT:

- There are no token types and no pooler.
- The softmax over the items does not include special tokens.
- The last layer and the head run on the scored positions only (`kept_positions`).
- Options that the paper does not have: rotary positions, a convolution over neighboring items, attention that starts
  at the identity, and heads for repeated interactions and for transitions between two items.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_bert4rec import SPECIAL_TOKENS, Bert4RecConfig
from .heads import (
    AddedScores,
    Bert4RecPredictionHead,
    Bert4RecRepeatHead,
    Bert4RecTransitionHead,
    add_repeats,
    add_scores,
    added_sums,
)
from .inputs import Input, check_inputs, choose_positions, keep, ranking_of
from .item_loss import item_loss
from .layers import Bert4RecAttention, Bert4RecEmbeddings, Bert4RecLayer, padding_mask


@dataclass
class MaskedItemOutput(MaskedLMOutput):
    """`MaskedLMOutput` with the tensors that are needed to rank the target among the other items.

    Args:
        ranking: Dict of token IDs; None in training and if nothing is ranked. `history` (batch, longest), padded with
            -100: items that the ranking excludes; (batch, 0) with `config.exclude_history=False`. `candidates` (batch,
            number), if the batch has them: items among which sampled metrics rank the target.
    """

    ranking: dict[str, Tensor] | None = None


class Bert4RecPreTrainedModel(PreTrainedModel):
    """Base class of all models: configuration, initialization and attention backends."""

    config: Bert4RecConfig
    _auto_class = "AutoModel"  # `save_pretrained` copies the code of the class next to the weights
    base_model_prefix = "model"
    _input_embed_layer = "item_embeddings"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Bert4RecEmbeddings", "Bert4RecLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": Bert4RecLayer, "attentions": Bert4RecAttention}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as in transformers, but by default only from safetensors, because a pickle can run code.

        `use_safetensors=False` reads only a pickle (`pytorch_model.bin`), even if the folder also has safetensors.

        Raises:
            OSError: As in transformers, or there are no weights in safetensors, and `use_safetensors` is not False.
        """
        if kwargs.get("use_safetensors") is None:  # with None, the default of transformers, it would read a pickle
            kwargs["use_safetensors"] = True
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except OSError as error:
            if not kwargs["use_safetensors"] or "named model.safetensors" not in str(error):
                raise
            raise OSError(
                f"{pretrained_model_name_or_path}: expected weights in model.safetensors, found none. A "
                "pytorch_model.bin is a pickle, which can run code. If you trust it, load it with "
                "`use_safetensors=False`. Otherwise save the model again."
            ) from error

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # biases 0, layer normalizations 1
        if isinstance(module, (nn.Linear, nn.Embedding)):
            std = self.config.initializer_range
            initialization.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if (start := getattr(module, "starts_at", None)) is not None:
                initialization.constant_(module.bias, start)
            if getattr(module, "starts_at_identity", False):
                initialization.copy_(module.weight, module.weight + torch.eye(len(module.weight)).to(module.weight))
        if isinstance(module, Bert4RecTransitionHead):
            for tensor in (module.powers, *module.buffers()):
                initialization.zeros_(tensor)
        if isinstance(module, nn.Conv1d):  # a position starts as its own item plus a quarter of each neighbor
            size = module.weight.shape[-1]
            offsets = (torch.arange(size) - size // 2).abs()
            start = torch.where(offsets == 1, 0.25, (offsets == 0).float())
            initialization.copy_(module.weight, start.expand_as(module.weight))


class Bert4RecEncoder(Bert4RecPreTrainedModel):
    """Base class of the encoders: checks the inputs. Subclasses implement `encode`."""

    _keys_to_ignore_on_load_unexpected = [r"^(lm|prediction|repeat|transition)_head\."]  # of a model with heads
    causal = False  # whether a state depends on earlier items only; then padding on the left would be read as items

    def encode(
        self, input_ids: Input, inputs_embeds: Input, attention_mask: Input, kept_positions: Input, **kwargs: Any
    ) -> Tensor:
        """Return the hidden states (batch, length or kept, hidden); the arguments are those of `forward`."""
        raise NotImplementedError

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        kept_positions: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode a batch of histories.

        Args:
            input_ids: (batch, length) token IDs, oldest item first, padding on the right (with padding on the left,
                items would get the positions of newer items).
            attention_mask: (batch, length), 1 = real item, 0 = padding. All real if not given.
            inputs_embeds: (batch, length, hidden) instead of `input_ids`.
            kept_positions: (batch, kept) positions to return, all if not given. The last layer of BERT4Rec runs only on
                these positions, so the last tensor of `hidden_states` is also (batch, kept, hidden).

        Returns:
            `BaseModelOutput` whose `last_hidden_state` is (batch, length or kept, hidden).

        Raises:
            ValueError: Not exactly one of `input_ids` and `inputs_embeds` is given, this input is empty or has another
                number of dimensions, `attention_mask` has another shape, there are more positions than
                `max_position_embeddings` (not GRU4Rec), a row is empty or padded on the left (SASRec and GRU4Rec),
                `position_ids` are given, or, on a CPU, a token ID or a value of `attention_mask` is out of range.
        """
        check_inputs(self.config, input_ids, inputs_embeds, attention_mask, self.causal)
        if kwargs.get("position_ids") is not None:
            raise ValueError("`position_ids` is not supported: the position of an item is its place in the row.")
        if input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        return BaseModelOutput(self.encode(input_ids, inputs_embeds, attention_mask, kept_positions, **kwargs))


class Bert4RecModel(Bert4RecEncoder):
    """Bidirectional encoder: one hidden state per position, computed from the whole history."""

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__(config)
        self.embeddings = Bert4RecEmbeddings(config)
        self.layers = nn.ModuleList(Bert4RecLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    def encode(
        self, input_ids: Input, inputs_embeds: Input, attention_mask: Input, kept_positions: Input, **kwargs: Any
    ) -> Tensor:
        hidden_states = self.embeddings(input_ids, inputs_embeds, attention_mask)
        mask = padding_mask(self.config, hidden_states, hidden_states, attention_mask)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, hidden_states, mask, **kwargs)

        # The last layer runs on the kept positions only, which changes no result and makes training 2.4 times faster.
        # Flash attention would take fewer queries for the last positions, so with it the layer runs on all positions.
        late = is_flash_attention_requested(self.config)
        kept = None if late else kept_positions
        queries = keep(hidden_states, kept)
        if kept is not None:
            mask = padding_mask(self.config, queries, hidden_states, attention_mask)
        hidden_states = self.layers[-1](hidden_states, queries, mask, kept, **kwargs)
        return keep(hidden_states, kept_positions if late else None)


class Bert4RecForMaskedLM(Bert4RecPreTrainedModel):
    """BERT4Rec with a masked-item head. The next item is predicted at a [MASK] at the end of the history."""

    _auto_class = "AutoModelForMaskedLM"
    base_class: type[Bert4RecEncoder] = Bert4RecModel  # subclasses may have another encoder

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__(config)
        self.model = self.base_class(config)
        name = next(name for name, module in self.named_modules() if module is self.get_input_embeddings())
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.prediction_head = Bert4RecPredictionHead(config) if config.prediction_head else nn.Identity()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.repeat_head = Bert4RecRepeatHead(config) if config.repeat_head else None
        self.transition_head = Bert4RecTransitionHead(config) if config.num_followers else None
        self.post_init()
        if config.tie_word_embeddings:  # otherwise the Trainer warns of a missing weight when it loads a checkpoint
            self._keys_to_ignore_on_save.add("lm_head.weight")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        kept_positions: Tensor | None = None,
        history: Tensor | None = None,
        candidates: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedItemOutput:
        """Score all items at the positions of a batch of histories.

        Args:
            input_ids: (batch, length) token IDs, oldest item first, padding on the right.
            attention_mask: (batch, length), 1 = real item, 0 = padding. All real if not given.
            inputs_embeds: (batch, length, hidden) instead of `input_ids`.
            labels: (batch, length) the true item at scored positions (in BERT4Rec those with [MASK]), -100 elsewhere.
            logits_to_keep: As in transformers: the number of positions to score at the end of each row, 0 for all, or
                positions (kept,) that are the same in every row.
            kept_positions: (batch, kept) positions to score in each row. Default: with `labels`, and without
                `logits_to_keep`, the positions with labels (all positions under torch.compile).
            history: (batch, longest) token IDs of the user's items, padded with -100. Does not affect the logits. In
                evaluation it is returned in `ranking`. It is no label, because a Trainer keeps the labels of all users.
            candidates: (batch, number) token IDs among which the target is ranked, also returned in `ranking`.
            num_items_in_batch: Number of scored positions in all steps and processes of a batch, from the Trainer.

        Returns:
            `MaskedItemOutput`: `loss` with `labels`, in evaluation always the loss `softmax`; `logits` (batch, length
            or kept, vocab_size), with the lowest finite value for special tokens; `ranking` in evaluation. Training
            with `labels` returns no logits, which would be the largest tensor.

        Raises:
            ValueError: As for the encoder (`Bert4RecEncoder.forward`) and, in training, for `item_loss`; `labels`,
                `kept_positions` or `logits_to_keep` have another shape or type; both of the last two are given; a label
                is out of range (on a CPU); or `inputs_embeds` is given for a model with `repeat_head` or
                `num_followers`.
        """
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        kept_positions = choose_positions(inputs, labels, logits_to_keep, kept_positions, self.config.vocab_size)
        if labels is not None and kept_positions is not None:
            labels = labels.take_along_dim(kept_positions, dim=1)

        outputs = self.model(input_ids, attention_mask, inputs_embeds, kept_positions, **kwargs)
        hidden_states = self.query_vectors(outputs.last_hidden_state, input_ids)
        added = self._added_scores(hidden_states, input_ids, kept_positions, labels if self.training else None)
        loss = logits = ranking = None
        if labels is not None:
            # Evaluation has the same loss for all training losses.
            kind = None if self.training else "softmax"
            count = num_items_in_batch if self.training else None  # in evaluation it would count [UNK] too
            sums = added_sums(added, labels)
            loss = item_loss(self.config, hidden_states, *self._item_weights(), labels, count, kind, sums)
        if labels is None or not self.training:
            logits = self._item_logits(hidden_states, added)
        row_inputs = [rows for rows in (history, labels, candidates) if rows is not None]
        if row_inputs and not self.training:
            ranking = ranking_of(self.config.exclude_history, history, candidates, row_inputs[0])
        return MaskedItemOutput(loss, logits, outputs.hidden_states, outputs.attentions, ranking)

    def save_pretrained(self, save_directory: str | PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save as in transformers, with the code of the encoder, so that AutoModel can load the encoder."""
        if is_main_process and type(self.model).__module__ != "__main__":
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            custom_object_save(self.model, save_directory, config=self.config)
        super().save_pretrained(save_directory, is_main_process, **kwargs)

    def query_vectors(self, hidden_states: Tensor, input_ids: Tensor | None = None) -> Tensor:
        """Return the vectors whose inner products with the item vectors are scored, in the shape of `hidden_states`.

        In evaluation of a bidirectional model, the vectors of a row of `input_ids` without items are 0. Its logits are
        the biases, which start as the popularity of the items and roughly keep its order. The model has not learned to
        predict from nothing, because a training row of two items or more keeps a visible item. Items that an
        `attention_mask` hides count as items.
        """
        queries = self.prediction_head(hidden_states)
        if self.training or self.model.causal or input_ids is None:
            return queries
        has_items = (input_ids >= len(SPECIAL_TOKENS)).any(dim=1)
        return queries * has_items.view(-1, *[1] * (queries.dim() - 1)).to(queries)  # keeps NaN of damaged weights

    def score_items(
        self, hidden_states: Tensor, input_ids: Tensor | None = None, kept_positions: Tensor | None = None
    ) -> Tensor:
        """Return the logits of all items for last hidden states of the encoder.

        Args:
            hidden_states: (batch, kept, hidden); without `repeat_head` and `num_followers` any shape (..., hidden).
            input_ids: (batch, length) token IDs of the encoder's input, needed with `repeat_head` or `num_followers`,
                and for rows without items (see `query_vectors`). The first dimension of the states must be the batch.
            kept_positions: (batch, kept) positions of the states; all if not given.

        Returns:
            (batch, kept, vocab_size), or (..., vocab_size) for states (..., hidden). A logit is the inner product of a
            query vector (`query_vectors`) and an item vector plus a bias. Items of the history with `repeat_head`, and
            followers with `num_followers`, have other logits. Special tokens have the lowest finite value.

        Raises:
            ValueError: The model has `repeat_head` or `num_followers`, and `input_ids` are missing.
        """
        hidden_states = self.query_vectors(hidden_states, input_ids)
        return self._item_logits(hidden_states, self._added_scores(hidden_states, input_ids, kept_positions))

    def _item_logits(self, hidden_states: Tensor, added: AddedScores) -> Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):  # bfloat16 would make ties in the ranking
            logits = self.lm_head(hidden_states.to(getattr(self.lm_head.weight, "dtype", self.dtype)))
            logits[..., : len(SPECIAL_TOKENS)] = torch.finfo(logits.dtype).min
            for add, rows, scores in added:
                logits = add(logits.to(scores.dtype), rows, scores)
            return logits

    def _added_scores(
        self,
        hidden_states: Tensor,
        input_ids: Tensor | None,
        kept_positions: Tensor | None,
        labels: Tensor | None = None,
    ) -> AddedScores:
        """Return what `repeat_head` and `transition_head` add to the logits. `labels` (batch, kept): training only."""
        found: AddedScores = []
        if self.repeat_head is None and self.transition_head is None:
            return found
        if input_ids is None:
            advice = "Pass them instead of `inputs_embeds`, and also to `score_items(states, input_ids)`."
            raise ValueError(f"A model with `repeat_head` or `num_followers` needs `input_ids`. {advice}")
        if kept_positions is None:
            kept_positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        with torch.autocast(hidden_states.device.type, enabled=False):
            states = hidden_states.to(self.dtype)
            if self.repeat_head is not None:
                items = self.get_input_embeddings()(input_ids)
                repeats = self.repeat_head(states, items, input_ids, kept_positions, self.model.causal)
                found.append((add_repeats, input_ids.unsqueeze(1).expand_as(repeats), repeats))
            if self.transition_head is not None:
                found.append((add_scores, *self.transition_head(states, input_ids, kept_positions, labels)))
        return found

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Change the number of rows of the item table, as in transformers, and of the tables of followers."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.transition_head is not None:
            self.transition_head.resize(self.config.vocab_size)
        return embeddings

    def _item_weights(self) -> tuple[Tensor, Tensor]:
        head: Any = self.lm_head
        if callable(head.weight):  # after torch.ao.quantization.quantize_dynamic
            return head.weight().dequantize(), head.bias()
        return head.weight, head.bias
