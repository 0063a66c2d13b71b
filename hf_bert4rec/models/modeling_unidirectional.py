"""SASRec and GRU4Rec, the unidirectional models to compare with: an item is predicted from those before it alone.

Both answer as BERT4Rec does: the state at a position is the prediction of the item there. So that it has not seen that
item, the inputs are moved one place to the right: position t reads item t - 1, and the first one [MASK], a history of
nothing. Training scores every position (`DataCollatorForNextItem`); the [MASK] after a history is never read. SASRec is
BERT4Rec's encoder with a causal mask, the same loss and the same training, so that a comparison can change this alone:
what is scored, and the convolution, which would look ahead, follow from it.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_bert4rec import SPECIAL_TOKENS, Bert4RecConfig
from .modeling_bert4rec import (
    Bert4RecAttention,
    Bert4RecForMaskedLM,
    Bert4RecModel,
    Bert4RecPreTrainedModel,
    Dropout,
    keep,
)


@strict
class SasRecConfig(Bert4RecConfig):
    """A `Bert4RecConfig` for SASRec (Kang and McAuley, ICDM 2018), by default without a prediction head, as there.

    Raises:
        ValueError: As for `Bert4RecConfig`; or `conv_kernel_size`, which would show an item to its own prediction.
    """

    model_type = "sasrec"
    code_files = ("modeling_unidirectional", "modeling_unidirectional")

    prediction_head: bool = False

    def validate_direction(self) -> None:
        """Refuse what looks ahead."""
        if self.conv_kernel_size is not None:
            raise ValueError(f"SASRec looks back only: `conv_kernel_size` must be None, found {self.conv_kernel_size}.")


@strict
class Gru4RecConfig(Bert4RecConfig):
    """A `Bert4RecConfig` for GRU4Rec (Hidasi et al., ICLR 2016): what is said of attention and positions is not read.

    Raises:
        ValueError: As for `Bert4RecConfig`; or `rope_theta` or `conv_kernel_size`, which nobody reads.
    """

    model_type = "gru4rec"
    code_files = ("modeling_unidirectional", "modeling_unidirectional")

    num_hidden_layers: int = 1
    num_attention_heads: int = 1  # not read: any width will do
    prediction_head: bool = False

    def validate_direction(self) -> None:
        """Refuse what a recurrent network has no place for."""
        for name in ("rope_theta", "conv_kernel_size"):
            if getattr(self, name) is not None:
                raise ValueError(f"GRU4Rec has no place for `{name}`: it must be None, found {getattr(self, name)}.")


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
        logits_to_keep: torch.Tensor | None = None,
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
        return BaseModelOutput(last_hidden_state=keep(hidden_states, logits_to_keep))


class SasRecForMaskedLM(Bert4RecForMaskedLM):
    """SASRec with the item table as its output. Next-item prediction is a [MASK] at the end, as with BERT4Rec."""

    config: SasRecConfig
    base_class = SasRecModel


class Gru4RecModel(Bert4RecPreTrainedModel):
    """The recurrent encoder: at each position one hidden state, of the items before it."""

    config: Gru4RecConfig
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

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        logits_to_keep: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """As `SasRecModel`."""
        embedded = shift_right(self.item_embeddings, input_ids, inputs_embeds, attention_mask)
        hidden_states = self.dropout(embedded)
        for layer in self.layers:
            hidden_states, _ = layer(hidden_states)
            hidden_states = self.dropout(hidden_states)
        return BaseModelOutput(last_hidden_state=keep(hidden_states, logits_to_keep))


class Gru4RecForMaskedLM(Bert4RecForMaskedLM):
    """GRU4Rec with the item table as its output. Next-item prediction is a [MASK] at the end, as with BERT4Rec."""

    config: Gru4RecConfig
    base_class = Gru4RecModel
    supports_gradient_checkpointing = False
    _tied_weights_keys = {"lm_head.weight": "model.item_embeddings.weight"}
