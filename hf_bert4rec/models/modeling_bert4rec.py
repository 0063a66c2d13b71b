"""BERT4Rec: a bidirectional Transformer encoder of a user's history, with a masked-item head.

Read the classes in order: embeddings, attention, feed-forward, layer, encoder, head. Differences from BERT:

- There are no token types and no pooler.
- The softmax over the items does not include special tokens.
- The last layer and the head run on the scored positions only (`kept_positions`).
- Options that the paper does not have: rotary positions, a convolution over neighboring items, attention that starts
  at the identity, and heads for repeated interactions and for transitions between two items.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.activations import ACT2FN
from transformers.dynamic_module_utils import custom_object_save
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .configuration_bert4rec import SPECIAL_TOKENS, Bert4RecConfig
from .item_loss import item_loss


@dataclass
class MaskedItemOutput(MaskedLMOutput):
    """`MaskedLMOutput` with the tensors that are needed to rank the target among the other items.

    Args:
        ranking: Dict of token IDs; None in training and if nothing is ranked. `history` (batch, longest), padded with
            -100: items that the ranking excludes; (batch, 0) with `config.exclude_history=False`. `candidates` (batch,
            number), if the batch has them: items among which sampled metrics rank the target.
    """

    ranking: dict[str, torch.Tensor] | None = None


class Dropout(nn.Dropout):
    """Dropout that is faster on a CPU: each random number of 64 bits is used for four elements.

    torch draws a random number for each element. A training step with torch's dropout takes 1.1 times as long.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        dropped = round(self.p * 2**16)  # how many of the 2^16 values of 16 bits drop an element
        fast = self.training and 0 < dropped < 2**16
        if not fast or hidden_states.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(hidden_states)
        numbers = torch.empty(-(-hidden_states.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.int16)[: hidden_states.numel()].view_as(hidden_states) >= dropped - 2**15
        return hidden_states * kept.to(hidden_states.dtype).mul_(2**16 / (2**16 - dropped))


class Bert4RecEmbeddings(nn.Module):
    """Item embedding; with `learned_positions`, plus an embedding of the position (paper, section 3.4).

    Position 0 is the oldest item. With `conv_kernel_size`, the input of a position also contains its neighbors. This
    helps a [MASK], which has no item of its own.
    """

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        self.item_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = None
        if config.learned_positions:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.max_length = config.max_position_embeddings
        size, channels = config.conv_kernel_size, config.hidden_size
        self.convolution = None
        if size is not None:
            self.convolution = nn.Conv1d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.item_embeddings(input_ids)
        length = inputs_embeds.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"Expected at most {self.max_length} positions (`max_position_embeddings`), found {length}. Keep only "
                f"the newest items, for example with `max_length={self.max_length}` in the split."
            )
        if self.convolution is not None:
            if attention_mask is not None:  # padding must not be a neighbor of the newest item
                if attention_mask.ndim != 2:
                    raise ValueError(
                        "With `conv_kernel_size`, `attention_mask` must have the shape (batch, length), found "
                        f"{attention_mask.ndim} dimensions."
                    )
                inputs_embeds = inputs_embeds.masked_fill(attention_mask.unsqueeze(-1) == 0, 0)
            inputs_embeds = self.convolution(inputs_embeds.transpose(1, 2)).transpose(1, 2)
        if self.position_embeddings is not None:
            inputs_embeds = inputs_embeds + self.position_embeddings.weight[:length]
        return self.dropout(self.norm(inputs_embeds))


def rotate(states: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotate query or key vectors by their positions, so that their products depend on distances (Su et al., 2021).

    Args:
        states: (batch, heads, positions, head_dim).
        positions: (positions,) or (batch, positions); 0 is the oldest item.
        theta: Pair i of the numbers of a head has a wavelength of 2π · theta^(2i / head_dim) positions.

    Returns:
        Same shape as `states`.
    """
    half = states.shape[-1] // 2  # the last number of an odd width is not rotated
    # In bfloat16 neighboring positions would have the same angles.
    steps = torch.arange(half, device=states.device, dtype=torch.float32) / half
    angles = positions.unsqueeze(-1) / theta**steps  # ([batch,] positions, half)
    cos, sin = (wave.unsqueeze(-3).to(states.dtype) for wave in (angles.cos(), angles.sin()))
    first, second, rest = states.split([half, half, states.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def padding_mask(
    config: Bert4RecConfig, queries: torch.Tensor, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
) -> Any:
    """Return the attention mask in the format of the attention backend, or None if nothing is masked.

    All queries attend to the same positions, so eager and sdpa attention get one row of the mask and broadcast it. On a
    CPU this makes attention up to 1.6 times faster.
    """
    if config._attn_implementation in ("eager", "sdpa"):
        queries = queries[:, :1]
    return create_bidirectional_mask(config, queries, attention_mask, encoder_hidden_states=hidden_states)


class Bert4RecAttention(nn.Module):
    """Multi-head attention from some positions, the queries, to all positions of a history (paper, equation 2)."""

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.rope_theta = config.rope_theta
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        for module in (self.value, self.output):  # for `_init_weights`
            module.starts_at_identity = config.identity_attention  # type: ignore[assignment]

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, length, hidden)
        queries: torch.Tensor,  # (batch, kept, hidden)
        attention_mask: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,  # (batch, kept) positions of the queries; all if None
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            project(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, positions, head_dim)
            for project, states in ((self.query, queries), (self.key, hidden_states), (self.value, hidden_states))
        )
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        # Attention in bfloat16 is slow on a CPU, above all its backward pass: a step takes 1.4 times as long.
        if torch.is_autocast_enabled("cpu"):
            query, key, value = query.float(), key.float(), value.float()
        if self.rope_theta is not None:
            positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
            query = rotate(query, positions if kept is None else kept, self.rope_theta)
            key = rotate(key, positions, self.rope_theta)
        with torch.autocast("cpu", enabled=False):
            attn_output, attn_weights = attention_interface(
                self,
                query,
                key,
                value,
                attention_mask,
                dropout=self.attention_dropout if self.training else 0.0,
                scaling=self.scaling,
                **kwargs,
            )
        return self.output(attn_output.flatten(2)), attn_weights


class Bert4RecMLP(nn.Module):
    """Position-wise feed-forward network (paper, equation 3)."""

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output(self.act(self.intermediate(hidden_states)))


class Bert4RecLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each followed by dropout, residual and layer normalization (paper, section 3.3)."""

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        self.attention = Bert4RecAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Bert4RecMLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        queries: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attn_output, _ = self.attention(hidden_states, queries, attention_mask, kept, **kwargs)
        queries = self.attention_norm(queries + self.dropout(attn_output))
        return self.mlp_norm(queries + self.dropout(self.mlp(queries)))


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

        `use_safetensors=False` also allows a pickle (`pytorch_model.bin`).

        Raises:
            OSError: As in transformers, or there are no weights in safetensors, and `use_safetensors` is not False.
        """
        if kwargs.get("use_safetensors") is None:  # with None, the default of transformers, it would read a pickle
            kwargs["use_safetensors"] = True
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except OSError as error:
            if "named model.safetensors" not in str(error):
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


def keep(hidden_states: torch.Tensor, kept_positions: torch.Tensor | None) -> torch.Tensor:
    """Return the states (batch, kept, hidden) at the `kept_positions` (batch, kept). If these are None, return all."""
    if kept_positions is None:
        return hidden_states
    # Not by `take_along_dim`, with which torch.export would fix the size of the batch.
    return hidden_states.gather(
        1, kept_positions[..., None].expand(hidden_states.shape[0], -1, hidden_states.shape[-1])
    )


class Bert4RecEncoder(Bert4RecPreTrainedModel):
    """Base class of the encoders: checks the inputs. Subclasses implement `encode`."""

    _keys_to_ignore_on_load_unexpected = [r"^(lm|prediction|repeat|transition)_head\."]  # of a model with heads
    causal = False  # whether a state depends on earlier items only; then padding on the left would be read as items

    def encode(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        kept_positions: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Return the hidden states (batch, length or kept, hidden); the arguments are those of `forward`."""
        raise NotImplementedError

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        kept_positions: torch.Tensor | None = None,
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
            ValueError: Not exactly one of `input_ids` and `inputs_embeds` is given, there are more positions than
                `max_position_embeddings` (not GRU4Rec), `attention_mask` has another shape (with `conv_kernel_size`),
                or a row is empty or padded on the left (SASRec and GRU4Rec).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        if input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        readable = torch.is_tensor(attention_mask) and attention_mask.ndim == 2 and not is_tracing(attention_mask)
        if self.causal and attention_mask is not None and readable and not attention_mask[:, :1].all():
            advice = "Set `tokenizer.padding_side='right'`. Give empty histories a [MASK]."
            raise ValueError(f"A row of `attention_mask` begins with 0, so it is empty or padded on the left. {advice}")
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
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        kept_positions: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
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


class Bert4RecPredictionHead(nn.Module):
    """Dense layer, activation and layer normalization, as in the published code; equation 7 has no normalization."""

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.act(self.dense(hidden_states)))


class Bert4RecRepeatHead(nn.Module):
    """Scores for repeated interactions with items of the history (repeat mode of RepeatNet; Ren et al., AAAI 2019).

    An attention over the history gives each position a share a, and a gate g determines their total weight.
    With the scores s of the catalog, the probability of an item is

        (exp(s of the item) + exp(g) · sum of a over its positions) / (sum of exp(s) over all items + exp(g))

    An inner product of short vectors cannot distinguish the items of a user from thousands of others. This head can.
    """

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.distance = nn.Embedding(config.max_position_embeddings, 1)
        self.gate = nn.Linear(config.hidden_size, 1)
        # For `_init_weights`: with small random weights, catalog and history are about equally likely at first.
        self.gate.starts_at = math.log(config.vocab_size)  # type: ignore[assignment]

    def forward(
        self,
        hidden_states: torch.Tensor,
        items: torch.Tensor,
        input_ids: torch.Tensor,
        kept: torch.Tensor,
        causal: bool,
    ) -> torch.Tensor:
        """Return g + log a, (batch, kept, length), at least in single precision.

        Special tokens, and items that do not count, get the lowest finite value.

        Args:
            hidden_states: (batch, kept, hidden) at the scored positions.
            items: (batch, length, hidden) vectors of the items of the history.
            input_ids: (batch, length) token IDs of these items; padding is [PAD].
            kept: (batch, kept) scored positions.
            causal: Whether only items before a scored position count.
        """
        distances = kept.unsqueeze(-1) - torch.arange(input_ids.shape[1], device=kept.device)
        real = (input_ids >= len(SPECIAL_TOKENS)).unsqueeze(1) & ((distances > 0) | (not causal))
        near = distances.abs().clamp(max=self.distance.num_embeddings - 1)  # a GRU may read more positions
        weights = self.query(hidden_states) @ items.transpose(1, 2) + self.distance(near).squeeze(-1)
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
        lowest = torch.finfo(weights.dtype).min
        shares = weights.masked_fill(~real, lowest).log_softmax(dim=-1)
        return (self.gate(hidden_states) + shares).masked_fill(~real, lowest)


def add_repeats(logits: torch.Tensor, rows: torch.Tensor, repeats: torch.Tensor) -> torch.Tensor:
    """Return log(exp(logits) + exp(repeats)), (batch, kept, vocab_size), with the sum over the repeats of an item.

    `repeats`, the output of `Bert4RecRepeatHead`, and `rows` are (batch, kept, length). `rows` are the token IDs of the
    history, once per kept position.
    """
    input_ids = rows[:, 0]
    same = (input_ids.unsqueeze(-1) == input_ids.unsqueeze(1)).to(repeats)  # whether two positions have one item
    largest = repeats.amax(dim=-1, keepdim=True)
    sums, tiny = (repeats - largest).exp() @ same, torch.finfo(repeats.dtype).tiny
    together = torch.where(sums > tiny, sums.clamp(min=tiny).log() + largest, repeats)
    scores = logits.gather(-1, rows)
    added = torch.logaddexp(scores, together.to(scores)) - scores
    added = added.masked_fill(rows < len(SPECIAL_TOKENS), 0) / same.sum(dim=1, keepdim=True)  # equal parts per position
    return logits.scatter_add(-1, rows, added.to(logits))


class Bert4RecTransitionHead(nn.Module):
    """Head that adds a first-order Markov chain: items that often followed the previous item get higher scores.

    The previous item is the item right before the position, and s are the scores of the catalog. c is the number of
    users in whose training history an item came right after the previous item, and n is the sum of c over all items.
    The probability of an item is

        (exp(s of the item) + exp(g) · c^a / n^b) / (sum of exp(s) over all items + exp(g) · sum of c^a / n^b)

    g is a gate that depends on the hidden state; a and b are trained and start at 1. In training, the transition to the
    target counts once less, because the count includes this user and would reveal the target. The head is needed
    because an inner product of short vectors cannot store single transitions.

    `count_transitions` fills the buffers: `followers` (rows, number) are the token IDs with the most users, 0 for none,
    `counts` (rows, number) their c, and `totals` (rows,) the n of each item.
    """

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        rows, number = config.vocab_size, config.num_followers
        self.followers: torch.Tensor
        self.counts: torch.Tensor
        self.totals: torch.Tensor
        for name, shape in (("followers", (rows, number)), ("counts", (rows, number)), ("totals", (rows,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int32))
        self.gate = nn.Linear(config.hidden_size, 1)
        self.powers = nn.Parameter(torch.zeros(2))  # a - 1 and b - 1, since weight decay draws them to 0

    def forward(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor,
        kept: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token IDs of followers and g + a log c - b log n, both (batch, kept, number).

        A missing follower gets the lowest finite value.

        Args:
            hidden_states: (batch, kept, hidden) at the scored positions.
            input_ids: (batch, length) token IDs.
            kept: (batch, kept) scored positions.
            labels: (batch, kept) true items, whose transitions count once less, or None.
        """
        kept = kept.expand(input_ids.shape[0], -1)
        before = input_ids.gather(1, (kept - 1).clamp(min=0)).masked_fill(kept == 0, 0)
        before = before.masked_fill(before < len(SPECIAL_TOKENS), 0)
        followers, counts, totals = self.followers[before].long(), self.counts[before], self.totals[before]
        if labels is not None:
            counts, totals = counts - (followers == labels.unsqueeze(-1)).to(counts), totals - 1
        precision = torch.promote_types(self.powers.dtype, torch.float32)  # a count may exceed float16
        c, n = (number.clamp(min=1).to(precision).log() for number in (counts, totals.unsqueeze(-1)))
        a, b = self.powers.to(precision) + 1
        scores = self.gate(hidden_states).to(precision) + a * c - b * n
        return followers, scores.masked_fill(counts < 1, torch.finfo(scores.dtype).min)

    def resize(self, rows: int) -> None:
        """Change the number of token IDs to `rows`. New items have no followers, and removed ones follow no item."""
        for name, old in [*self.named_buffers()]:
            new = old.new_zeros(rows, *old.shape[1:])
            new[: len(old)] = old[:rows]
            setattr(self, name, new)
        gone = self.followers >= rows
        self.followers[gone] = self.counts[gone] = 0


def add_transitions(logits: torch.Tensor, followers: torch.Tensor, transitions: torch.Tensor) -> torch.Tensor:
    """Return log(exp(logits) + exp(transitions)), (batch, kept, vocab_size); see `Bert4RecTransitionHead.forward`."""
    scores = logits.gather(-1, followers)
    added = torch.logaddexp(scores, transitions.to(scores)) - scores
    return logits.scatter_add(-1, followers, added.masked_fill(followers < len(SPECIAL_TOKENS), 0))


AddedScores = list[tuple[Callable, torch.Tensor, torch.Tensor]]
"""For each additional head: a function that adds scores to logits; token IDs and scores, (batch, kept, number) each."""


def added_sums(added: AddedScores, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the log-sums (batch, kept) of the exponentials of added scores, over all items and over the true item."""
    if not added:
        return None
    _, *tensors = zip(*added, strict=True)
    rows, scores = (torch.cat(of, dim=-1) for of in tensors)
    of_labels = scores.masked_fill(rows != labels.unsqueeze(-1), torch.finfo(scores.dtype).min)
    return scores.logsumexp(dim=-1), of_labels.logsumexp(dim=-1)


def scored_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the positions with a label, (batch, kept). `kept` is the largest number of labels in a row.

    Rows with fewer labels are padded with other positions, whose label stays -100, so each label counts once.
    """
    unscored = labels == -100
    kept = max(1, int((~unscored).sum(dim=-1).max()))
    return unscored.int().argsort(dim=-1, stable=True)[:, :kept]


def shared_positions(logits_to_keep: int | torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return transformers' `logits_to_keep` as positions (batch, kept) of inputs (batch, length, ...)."""
    batch, length = inputs.shape[:2]
    kept: Any = logits_to_keep
    if not torch.is_tensor(kept):
        if kept < 0:
            raise ValueError(f"`logits_to_keep` must be at least 0, found {kept}.")
        kept = slice(-kept, None)
    elif kept.ndim != 1:
        raise ValueError(
            f"`logits_to_keep` must be an integer or positions of shape (kept,), found shape {tuple(kept.shape)}. "
            "Pass positions of each row, (batch, kept), as `kept_positions`."
        )
    return torch.arange(length, device=inputs.device)[kept].expand(batch, -1)


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
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        kept_positions: torch.Tensor | None = None,
        history: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
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
            history: (batch, longest) token IDs of the user's items, padded with -100. In evaluation it is part of
                `ranking`, not of the labels, because a Trainer collects labels for all users.
            candidates: (batch, number) token IDs among which the target is ranked, also returned in `ranking`.
            num_items_in_batch: Number of scored positions in all steps and processes of a batch, from the Trainer.

        Returns:
            `MaskedItemOutput`: `loss` with `labels`; `logits` (batch, length or kept, vocab_size), with the lowest
            finite value for special tokens; `ranking` in evaluation. Training with `labels` returns no logits, which
            would be the largest tensor.

        Raises:
            ValueError: As for the encoder (`Bert4RecEncoder.forward`) and, in training, for `item_loss`;
                `logits_to_keep` is negative, has several dimensions or is given with `kept_positions`; or
                `inputs_embeds` is given for a model with `repeat_head` or `num_followers`.
        """
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs is not None and (torch.is_tensor(logits_to_keep) or logits_to_keep != 0):
            if kept_positions is not None:
                raise ValueError("Pass at most one of `logits_to_keep` and `kept_positions`.")
            kept_positions = shared_positions(logits_to_keep, inputs)
        if labels is not None and kept_positions is None and not torch.compiler.is_compiling():
            kept_positions = scored_positions(labels)
        if labels is not None and kept_positions is not None:
            labels = labels.take_along_dim(kept_positions, dim=1)

        outputs = self.model(input_ids, attention_mask, inputs_embeds, kept_positions, **kwargs)
        hidden_states = self.prediction_head(outputs.last_hidden_state)
        added = self._added_scores(hidden_states, input_ids, kept_positions, labels if self.training else None)
        loss = logits = ranking = None
        if labels is not None:
            # Evaluation has the same loss for all training losses.
            kind = None if self.training else "softmax"
            count = num_items_in_batch if self.training else None  # the Trainer also counts targets that are no items
            sums = added_sums(added, labels)
            loss = item_loss(self.config, hidden_states, *self._item_weights(), labels, count, kind, sums)
        if labels is None or not self.training:
            logits = self._item_logits(hidden_states, added)
        row_inputs = [rows for rows in (history, labels, candidates) if rows is not None]
        if row_inputs and not self.training:
            excluded = history if self.config.exclude_history else row_inputs[0][:, :0]
            given = {"history": excluded, "candidates": candidates}
            ranking = {name: rows for name, rows in given.items() if rows is not None} or None
        return MaskedItemOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            ranking=ranking,
        )

    def save_pretrained(self, save_directory: str | PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save as in transformers, with the code of the encoder, so that AutoModel can load the encoder."""
        if is_main_process and type(self.model).__module__ != "__main__":
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            custom_object_save(self.model, save_directory, config=self.config)
        super().save_pretrained(save_directory, is_main_process, **kwargs)

    def score_items(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        kept_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits of all items for last hidden states of the encoder.

        Args:
            hidden_states: (batch, kept, hidden); without `repeat_head` and `num_followers` any shape (..., hidden).
            input_ids: (batch, length) token IDs of the encoder's input, needed with `repeat_head` or `num_followers`.
            kept_positions: (batch, kept) positions of the states; all if not given.

        Returns:
            (batch, kept, vocab_size). A logit is the inner product of a state and an item vector plus a bias. This
            does not hold for items of the history with `repeat_head`, or for followers with `num_followers`.

        Raises:
            ValueError: The model has `repeat_head` or `num_followers`, and `input_ids` are missing.
        """
        hidden_states = self.prediction_head(hidden_states)
        return self._item_logits(hidden_states, self._added_scores(hidden_states, input_ids, kept_positions))

    def _item_logits(self, hidden_states: torch.Tensor, added: AddedScores) -> torch.Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):  # bfloat16 would make ties in the ranking
            logits = self.lm_head(hidden_states.to(getattr(self.lm_head.weight, "dtype", self.dtype)))
            logits[..., : len(SPECIAL_TOKENS)] = torch.finfo(logits.dtype).min
            for add, rows, scores in added:
                logits = add(logits.to(scores.dtype), rows, scores)
            return logits

    def _added_scores(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor | None,
        kept_positions: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> AddedScores:
        """Return the scores of `repeat_head` and `transition_head`. `labels` (batch, kept) are given in training."""
        found: AddedScores = []
        if self.repeat_head is None and self.transition_head is None:
            return found
        if input_ids is None:
            advice = "Pass the token IDs of the encoder's input. `inputs_embeds` are not enough."
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
                found.append((add_transitions, *self.transition_head(states, input_ids, kept_positions, labels)))
        return found

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Change the number of rows of the item table, as in transformers, and of the tables of followers."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.transition_head is not None:
            self.transition_head.resize(self.config.vocab_size)
        return embeddings

    def _item_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        head: Any = self.lm_head
        if callable(head.weight):  # after torch.ao.quantization.quantize_dynamic
            return head.weight().dequantize(), head.bias()
        return head.weight, head.bias
