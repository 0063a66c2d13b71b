"""SASRec: BERT4Rec's encoder with a causal mask. An item is predicted only from the items before it.

As in BERT4Rec, the hidden state at a position predicts the item there. So the inputs are shifted by one position:
position t reads item t - 1, and position 0 reads [MASK]. Training scores every position (`DataCollatorForNextItem`).
The [MASK] after a history is not read.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from .configuration_bert4rec import SPECIAL_TOKENS, Bert4RecConfig
from .inputs import Input, keep
from .layers import Bert4RecAttention
from .modeling_bert4rec import Bert4RecForMaskedLM, Bert4RecModel


class SasRecConfig(Bert4RecConfig):
    """Configuration of a SASRec model (Kang and McAuley, ICDM 2018): that of BERT4Rec without a convolution.

    Raises:
        StrictDataclassError: As for `Bert4RecConfig`, or `conv_kernel_size` is set.
    """

    model_type = "sasrec"
    _paper_settings = {**Bert4RecConfig._paper_settings, "prediction_head": False}

    conv_kernel_size: int | None = None

    def validate_direction(self) -> None:
        """Check that `conv_kernel_size` is None: a convolution would leak the target."""
        if self.conv_kernel_size is not None:
            expected = "must be None for SASRec, because a convolution reads later items"
            raise ValueError(f"`conv_kernel_size` {expected}, found {self.conv_kernel_size}. Remove this option.")


def shift_right(table: nn.Embedding, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Return the embeddings (batch, length, hidden) of the item before each position. The first is that of [MASK]."""
    embedded = table(input_ids) if inputs_embeds is None else inputs_embeds
    start = table.weight[SPECIAL_TOKENS.index("[MASK]")].expand_as(embedded[:, :1])
    return torch.cat([start, embedded[:, :-1]], dim=1)


class SasRecModel(Bert4RecModel):
    """Causal encoder: one hidden state per position, computed from the items before it."""

    config: SasRecConfig
    causal = True

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, Bert4RecAttention):
                module.is_causal = True

    def encode(
        self, input_ids: Input, inputs_embeds: Input, attention_mask: Input, kept_positions: Input, **kwargs: Any
    ) -> Tensor:
        """Run all layers on all positions. Padding on the right needs no mask, since nothing attends to it."""
        hidden_states = self.embeddings(None, shift_right(self.embeddings.item_embeddings, input_ids, inputs_embeds))
        mask = create_causal_mask(self.config, hidden_states, None, None)
        for layer in self.layers:
            hidden_states = layer(hidden_states, hidden_states, mask, **kwargs)
        return keep(hidden_states, kept_positions)


class SasRecForMaskedLM(Bert4RecForMaskedLM):
    """SASRec with the item table as its output. The next item is predicted at a [MASK] at the end of the history."""

    config: SasRecConfig
    base_class = SasRecModel
