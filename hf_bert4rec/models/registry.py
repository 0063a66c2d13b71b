"""The architectures that the package trains: one row for each, read by every other part."""

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

from transformers import PreTrainedConfig

from .configuration_bert4rec import Bert4RecConfig
from .configuration_gru4rec import Gru4RecConfig
from .configuration_sasrec import SasRecConfig

Objective = Literal["cloze", "next_item"]


@dataclass(frozen=True)
class Architecture:
    """An architecture of the registry.

    Args:
        config_class: Its configuration; `config_class.model_type` is its key.
        model: Its model with a head, a subclass of `Bert4RecForMaskedLM`; a name such as
            `modeling_bert4rec.Bert4RecForMaskedLM` is imported when it is needed.
        objective: What it is trained by: `cloze` (`cloze_training`) or `next_item` (`next_item_training`).
        name: Its name in tables and model cards.
    """

    config_class: type[Bert4RecConfig]
    model: Any
    objective: Objective
    name: str

    @property
    def model_type(self) -> str:
        """The name in `config.json` and in recipes."""
        return self.config_class.model_type

    @property
    def model_class(self) -> Any:
        """The class of the model with a head."""
        if not isinstance(self.model, str):
            return self.model
        module, _, name = self.model.partition(".")
        return getattr(import_module(f".{module}", __package__), name)

    @property
    def encoder_class(self) -> Any:
        """The class of the encoder."""
        return self.model_class.base_class


_BUILT_IN = (
    Architecture(Bert4RecConfig, "modeling_bert4rec.Bert4RecForMaskedLM", "cloze", "BERT4Rec"),
    Architecture(SasRecConfig, "modeling_sasrec.SasRecForMaskedLM", "next_item", "SASRec"),
    Architecture(Gru4RecConfig, "modeling_gru4rec.Gru4RecForMaskedLM", "next_item", "GRU4Rec"),
)

ARCHITECTURES: dict[str, Architecture] = {row.model_type: row for row in _BUILT_IN}
"""Model type -> architecture."""


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the architecture of a configuration.

    A subclass that is not registered has that of its closest registered base class, under a name of its own.

    Raises:
        ValueError: No base class is registered.
    """
    kind = type(config)
    for base in kind.__mro__:
        row = ARCHITECTURES.get(vars(base).get("model_type", ""))
        if row is not None:
            return row if base is kind else replace(row, config_class=kind, name=kind.__name__.removesuffix("Config"))
    raise ValueError(
        f"{kind.__name__} is not a configuration of this package. Subclass Bert4RecConfig, or pass a model of "
        f"{', '.join(row.name for row in ARCHITECTURES.values())}."
    )


def register_architecture(
    config_class: type[Bert4RecConfig], model_class: type, objective: Objective = "cloze", name: str | None = None
) -> Architecture:
    """Register a model of your own, so that it trains, saves and loads like the built-in ones.

        class MyConfig(Bert4RecConfig):
            model_type = "mine"

        class MyModelForMaskedLM(Bert4RecForMaskedLM):
            config: MyConfig

        register_architecture(MyConfig, MyModelForMaskedLM)

    Call it before loading, too: AutoConfig, AutoModel and AutoModelForMaskedLM then find the classes. The file that
    defines them is saved with the weights (a class of a notebook, `__main__`, has none).

    Args:
        config_class: Subclass of `Bert4RecConfig` with a `model_type` of its own.
        model_class: Subclass of `Bert4RecForMaskedLM` with the annotation `config: MyConfig`; its `base_class` is the
            encoder.
        objective: `cloze`, or `next_item` for models in which a position sees the items before it only.
        name: Name in tables and model cards; that of `config_class` without "Config" if not given.

    Raises:
        ValueError: The model type belongs to another class, or `model_class` has no or another configuration class.
    """
    kind = config_class.model_type
    if kind in {row.model_type for row in _BUILT_IN}:
        raise ValueError(f"{config_class.__name__} needs a `model_type` of its own, found {kind!r}, which is built in.")
    if getattr(model_class, "config_class", None) is not config_class:
        raise ValueError(
            f"{model_class.__name__} does not name its configuration. Add the annotation "
            f"`config: {config_class.__name__}` to the class."
        )
    row = Architecture(config_class, model_class, objective, name or config_class.__name__.removesuffix("Config"))
    register_configs(row)
    register_models(row)
    ARCHITECTURES[kind] = row
    return row


def register_configs(*rows: Architecture) -> None:
    """Register the configuration classes with AutoConfig, of the built-in architectures if none is given.

    Raises:
        ValueError: A model type belongs to transformers.
    """
    from transformers import AutoConfig

    for row in rows or _BUILT_IN:
        AutoConfig.register(row.model_type, row.config_class, exist_ok=row.model_type in ARCHITECTURES)


def register_models(*rows: Architecture) -> None:
    """Register the model classes with AutoModel and AutoModelForMaskedLM, as `register_configs` does."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING

    for row in rows or _BUILT_IN:  # the mappings, since AutoModel.register refuses an encoder that others have, too
        MODEL_MAPPING.register(row.config_class, row.encoder_class, exist_ok=True)
        MODEL_FOR_MASKED_LM_MAPPING.register(row.config_class, row.model_class, exist_ok=True)
