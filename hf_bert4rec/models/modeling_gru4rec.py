"""GRU4Rec: a recurrent encoder. An item is predicted only from the items before it, as in SASRec."""

from typing import Any

import torch
from torch import nn
from transformers import initialization

from .configuration_bert4rec import Bert4RecConfig
from .inputs import Input, keep
from .layers import Dropout
from .modeling_bert4rec import Bert4RecEncoder, Bert4RecForMaskedLM
from .modeling_sasrec import shift_right


class Gru4RecConfig(Bert4RecConfig):
    """Configuration of a GRU4Rec model (Hidasi et al., ICLR 2016): that of BERT4Rec without attention and positions.

    `attention_probs_dropout_prob`, `identity_attention`, `intermediate_size`, `learned_positions` and
    `num_attention_heads` have no effect, but the last one must divide `hidden_size`. `rope_theta` and
    `conv_kernel_size` must be None. The default of `num_hidden_layers` is 1.

    Raises:
        StrictDataclassError: As for `Bert4RecConfig`, or `rope_theta` or `conv_kernel_size` is set.
    """

    model_type = "gru4rec"
    _paper_settings = {**Bert4RecConfig._paper_settings, "prediction_head": False}

    num_hidden_layers: int = 1
    num_attention_heads: int = 1  # no effect; 1 allows every `hidden_size`
    rope_theta: float | int | None = None
    conv_kernel_size: int | None = None

    def validate_positions(self) -> None:
        """Accept a configuration without positions: the network reads the items in their order."""

    def validate_direction(self) -> None:
        """Check that `rope_theta` and `conv_kernel_size` are None: there are no positions and no convolution."""
        for name in ("rope_theta", "conv_kernel_size"):
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` must be None for GRU4Rec, found {getattr(self, name)}. Remove this option.")


class Gru4RecModel(Bert4RecEncoder):
    """Recurrent encoder. The hidden state at a position is computed from the items before that position."""

    config: Gru4RecConfig
    causal = True
    _no_split_modules = []
    _can_record_outputs = {"hidden_states": nn.GRU}
    supports_gradient_checkpointing = False

    def __init__(self, config: Gru4RecConfig) -> None:
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            nn.GRU(config.hidden_size, config.hidden_size, batch_first=True) for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.GRU):  # as torch does
            for weight in module.parameters():
                initialization.uniform_(weight, -(module.hidden_size**-0.5), module.hidden_size**-0.5)

    def encode(
        self, input_ids: Input, inputs_embeds: Input, attention_mask: Input, kept_positions: Input, **kwargs: Any
    ) -> torch.Tensor:
        """Run all layers on all positions. Padding on the right needs no mask, since nothing is read after it."""
        hidden_states = self.dropout(shift_right(self.item_embeddings, input_ids, inputs_embeds))
        for layer in self.layers:
            hidden_states, _ = layer(hidden_states)
            hidden_states = self.dropout(hidden_states)
        return keep(hidden_states, kept_positions)


class Gru4RecForMaskedLM(Bert4RecForMaskedLM):
    """GRU4Rec with the item table as its output. The next item is predicted at a [MASK] at the end of the history."""

    config: Gru4RecConfig
    base_class = Gru4RecModel
    supports_gradient_checkpointing = False
