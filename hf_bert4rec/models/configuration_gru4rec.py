"""Configuration of GRU4Rec."""

from huggingface_hub.dataclasses import strict

from .configuration_bert4rec import Bert4RecConfig


@strict
class Gru4RecConfig(Bert4RecConfig):
    """Configuration of a GRU4Rec model (Hidasi et al., ICLR 2016): that of BERT4Rec without attention and positions.

    The options of attention, of positions and of the feed-forward layer have no effect.

    Raises:
        ValueError: As for `Bert4RecConfig`, or `rope_theta` or `conv_kernel_size` is set.
    """

    model_type = "gru4rec"
    _paper_settings = {**Bert4RecConfig._paper_settings, "prediction_head": False}

    num_hidden_layers: int = 1
    num_attention_heads: int = 1  # no effect, but every width is a multiple of it
    rope_theta: float | int | None = None
    conv_kernel_size: int | None = None

    def validate_direction(self) -> None:
        """Check that options of other encoders are not set."""
        for name in ("rope_theta", "conv_kernel_size"):
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` must be None for GRU4Rec, found {getattr(self, name)}.")
