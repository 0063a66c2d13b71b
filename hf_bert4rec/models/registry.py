"""The architectures that the package trains, one row each. All other modules read this registry."""

from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedConfig

from .configuration_bert4rec import Bert4RecConfig
from .modeling_bert4rec import Bert4RecEncoder, Bert4RecForMaskedLM
from .modeling_gru4rec import Gru4RecConfig, Gru4RecForMaskedLM
from .modeling_sasrec import SasRecConfig, SasRecForMaskedLM

Objective = Literal["cloze", "next_item"]


@dataclass(frozen=True)
class Architecture:
    """An architecture of the registry.

    Args:
        config_class: Configuration class. Its `model_type` is the name in recipes and in `config.json`.
        model_class: Model with a head. Its `base_class` is the encoder.
        objective: Training objective: `cloze` (`cloze_training`) or `next_item` (`next_item_training`).
        name: Name in tables and model cards.
    """

    config_class: type[Bert4RecConfig]
    model_class: type[Bert4RecForMaskedLM]
    objective: Objective
    name: str

    @property
    def model_type(self) -> str:
        """The model type of the configuration class."""
        return self.config_class.model_type

    @property
    def encoder_class(self) -> type[Bert4RecEncoder]:
        """The encoder class of the model class."""
        return self.model_class.base_class


_BUILT_IN = (
    Architecture(Bert4RecConfig, Bert4RecForMaskedLM, "cloze", "BERT4Rec"),
    Architecture(SasRecConfig, SasRecForMaskedLM, "next_item", "SASRec"),
    Architecture(Gru4RecConfig, Gru4RecForMaskedLM, "next_item", "GRU4Rec"),
)
ARCHITECTURES: dict[str, Architecture] = {row.model_type: row for row in _BUILT_IN}
"""Architecture of each model type."""


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the architecture of a configuration.

    An unregistered subclass gets the architecture of its closest registered base class, with its own class name.

    Raises:
        ValueError: No base class is registered.
    """
    kind = type(config)
    for base in kind.__mro__:
        row = ARCHITECTURES.get(vars(base).get("model_type", ""))
        if row is not None:
            return row if base is kind else replace(row, config_class=kind, name=kind.__name__.removesuffix("Config"))
    raise ValueError(
        f"Expected the configuration of a model of this package, found {kind.__name__}. Use such a model, for example "
        "`Bert4RecForMaskedLM`, or a subclass of it with a subclass of `Bert4RecConfig`."
    )


def register_architecture(
    config_class: type[Bert4RecConfig],
    model_class: type[Bert4RecForMaskedLM],
    objective: Objective = "cloze",
    name: str | None = None,
) -> Architecture:
    """Register a model of your own, so that it trains, saves and loads like the built-in ones.

        class MyConfig(Bert4RecConfig):
            model_type = "mine"

        class MyForMaskedLM(Bert4RecForMaskedLM):
            config: MyConfig

        register_architecture(MyConfig, MyForMaskedLM)

    Also register the model before you load it. Define the classes in a file: it is saved with the weights.

    Args:
        config_class: Subclass of `Bert4RecConfig` with its own `model_type`.
        model_class: Subclass of `Bert4RecForMaskedLM` with the annotation `config: MyConfig`.
        objective: `next_item` if a position sees only the items before it, otherwise `cloze`.
        name: Name in tables and model cards. Default: the class name without "Config".

    Raises:
        ValueError: The model type belongs to another model, or `model_class` has another configuration class.
    """
    if config_class.model_type in {row.model_type for row in _BUILT_IN}:
        found = f"found {config_class.model_type!r}, which is built in"
        raise ValueError(f"{config_class.__name__} needs its own `model_type`, {found}.")
    if model_class.config_class is not config_class:
        found = f"{model_class.__name__} does not have the configuration {config_class.__name__}"
        raise ValueError(f"{found}. Add the annotation `config: {config_class.__name__}` to this class.")
    row = Architecture(config_class, model_class, objective, name or config_class.__name__.removesuffix("Config"))
    register_configs(row)
    register_models(row)
    ARCHITECTURES[row.model_type] = row
    return row


def register_configs(*rows: Architecture) -> None:
    """Register configuration classes with AutoConfig, by default those of the built-in architectures.

    Raises:
        ValueError: A model of transformers has this `model_type`.
    """
    from transformers import AutoConfig  # not above: the package registers when transformers is imported

    for row in rows or _BUILT_IN:
        AutoConfig.register(row.model_type, row.config_class, exist_ok=row.model_type in ARCHITECTURES)


def register_models(*rows: Architecture) -> None:
    """Register model classes with AutoModel and AutoModelForMaskedLM, by default the built-in ones."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING

    for row in rows or _BUILT_IN:  # not by AutoModel.register, which refuses an encoder with a base configuration class
        MODEL_MAPPING.register(row.config_class, row.encoder_class, exist_ok=True)
        MODEL_FOR_MASKED_LM_MAPPING.register(row.config_class, row.model_class, exist_ok=True)
