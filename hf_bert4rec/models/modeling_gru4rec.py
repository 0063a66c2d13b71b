"""GRU4Rec: a recurrent encoder. An item is predicted from the items before it, as in SASRec."""

import torch
from torch import nn
from transformers import initialization
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_gru4rec import Gru4RecConfig
from .modeling_bert4rec import Bert4RecForMaskedLM, Bert4RecPreTrainedModel, Dropout, keep
from .modeling_sasrec import shift_right


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
        kept_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """As `SasRecModel`."""
        embedded = shift_right(self.item_embeddings, input_ids, inputs_embeds, attention_mask)
        hidden_states = self.dropout(embedded)
        for layer in self.layers:
            hidden_states, _ = layer(hidden_states)
            hidden_states = self.dropout(hidden_states)
        return BaseModelOutput(last_hidden_state=keep(hidden_states, kept_positions))


class Gru4RecForMaskedLM(Bert4RecForMaskedLM):
    """GRU4Rec with the item table as its output. Next-item prediction is a [MASK] at the end, as with BERT4Rec."""

    config: Gru4RecConfig
    base_class = Gru4RecModel
    supports_gradient_checkpointing = False
    _tied_weights_keys = {"lm_head.weight": "model.item_embeddings.weight"}
