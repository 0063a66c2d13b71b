"""Configuration of SASRec."""

from huggingface_hub.dataclasses import strict

from .configuration_bert4rec import Bert4RecConfig


@strict
class SasRecConfig(Bert4RecConfig):
    """Configuration of a SASRec model (Kang and McAuley, ICDM 2018): that of BERT4Rec without a convolution.

    Raises:
        ValueError: As for `Bert4RecConfig`, or `conv_kernel_size` is set.
    """

    model_type = "sasrec"
    _paper_settings = {**Bert4RecConfig._paper_settings, "prediction_head": False}

    conv_kernel_size: int | None = None

    def validate_direction(self) -> None:
        """Check that no option shows an item to its own prediction."""
        if self.conv_kernel_size is not None:
            raise ValueError(
                f"`conv_kernel_size` must be None for SASRec, which must not see later items, found "
                f"{self.conv_kernel_size}."
            )
