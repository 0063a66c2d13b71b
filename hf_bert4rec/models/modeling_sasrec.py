"""SASRec: BERT4Rec's encoder with a causal mask. An item is predicted from the items before it only.

The hidden state at a position is the prediction of the item there, as in BERT4Rec. The inputs are therefore shifted by
one place: position t reads item t - 1, and position 0 reads [MASK]. Training scores every position
(`DataCollatorForNextItem`), and the [MASK] after a history is not read.
"""

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_bert4rec import SPECIAL_TOKENS
from .configuration_sasrec import SasRecConfig
from .modeling_bert4rec import Bert4RecAttention, Bert4RecForMaskedLM, Bert4RecModel, keep


def shift_right(
    table: nn.Embedding,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Embeddings (batch, length, hidden) of the item before each position, [MASK] before the first.

    Raises:
        ValueError: Not exactly one of `input_ids` and `inputs_embeds`, or padding on the left.
    """
    if attention_mask is not None and not torch.compiler.is_compiling() and not attention_mask[:, 0].all():
        raise ValueError("Expected padding on the right, as ItemTokenizer makes it, found some on the left.")
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
    embedded = table(input_ids) if inputs_embeds is None else inputs_embeds
    start = table.weight[SPECIAL_TOKENS.index("[MASK]")].expand_as(embedded[:, :1])
    return torch.cat([start, embedded[:, :-1]], dim=1)


class SasRecModel(Bert4RecModel):
    """The causal encoder: at each position one hidden state, of the items before it."""

    config: SasRecConfig

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, Bert4RecAttention):
                module.is_causal = True

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
        """As `Bert4RecModel`, but all layers run on all positions, and `logits_to_keep` chooses among the last states.

        Padding on the right needs no mask: what comes later is not seen.
        """
        embedded = shift_right(self.embeddings.item_embeddings, input_ids, inputs_embeds, attention_mask)
        hidden_states = self.embeddings(None, embedded)
        mask = create_causal_mask(self.config, hidden_states, None, None)
        for layer in self.layers:
            hidden_states = layer(hidden_states, hidden_states, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=keep(hidden_states, kept_positions))


class SasRecForMaskedLM(Bert4RecForMaskedLM):
    """SASRec with the item table as its output. Next-item prediction is a [MASK] at the end, as with BERT4Rec."""

    config: SasRecConfig
    base_class = SasRecModel
