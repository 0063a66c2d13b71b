"""The layers of BERT4Rec: embeddings, attention and feed-forward."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_bert4rec import Bert4RecConfig


class Dropout(nn.Dropout):
    """Dropout that is faster on a CPU: each random number of 64 bits is used for four elements.

    torch draws a random number for each element. A training step with torch's dropout takes 1.1 times as long.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
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
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None = None
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.item_embeddings(input_ids)
        length = inputs_embeds.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"Expected at most {self.max_length} positions (`max_position_embeddings`), found {length}. Keep only "
                f"the newest items: `max_length={self.max_length}` of a split, or `truncation=True` of the tokenizer."
            )
        if self.convolution is not None:
            if attention_mask is not None:  # padding must not be a neighbor of the newest item
                inputs_embeds = inputs_embeds.masked_fill(attention_mask.unsqueeze(-1) == 0, 0)
            inputs_embeds = self.convolution(inputs_embeds.transpose(1, 2)).transpose(1, 2)
        if self.position_embeddings is not None:
            inputs_embeds = inputs_embeds + self.position_embeddings.weight[:length]
        return self.dropout(self.norm(inputs_embeds))


def rotate(states: Tensor, positions: Tensor, theta: float) -> Tensor:
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


def padding_mask(config: Bert4RecConfig, queries: Tensor, hidden_states: Tensor, attention_mask: Tensor | None) -> Any:
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
        hidden_states: Tensor,  # (batch, length, hidden)
        queries: Tensor,  # (batch, kept, hidden)
        attention_mask: Tensor | None = None,
        kept: Tensor | None = None,  # (batch, kept) positions of the queries; all if None
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = (
            project(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, positions, head_dim)
            for project, states in ((self.query, queries), (self.key, hidden_states), (self.value, hidden_states))
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        # Attention in bfloat16 is slow on a CPU, above all its backward pass: a step takes 1.4 times as long.
        if torch.is_autocast_enabled("cpu"):
            query, key, value = query.float(), key.float(), value.float()
        if self.rope_theta is not None:
            positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
            query = rotate(query, positions if kept is None else kept, self.rope_theta)
            key = rotate(key, positions, self.rope_theta)
        dropout = self.attention_dropout if self.training else 0.0
        with torch.autocast("cpu", enabled=False):
            attn_output, attn_weights = attend(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
        return self.output(attn_output.flatten(2)), attn_weights


class Bert4RecMLP(nn.Module):
    """Position-wise feed-forward network (paper, equation 3)."""

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
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
        hidden_states: Tensor,
        queries: Tensor,
        attention_mask: Tensor | None = None,
        kept: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        attn_output, _ = self.attention(hidden_states, queries, attention_mask, kept, **kwargs)
        queries = self.attention_norm(queries + self.dropout(attn_output))
        return self.mlp_norm(queries + self.dropout(self.mlp(queries)))
