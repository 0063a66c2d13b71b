"""Registry of the architectures that the package can train. Other modules look them up here."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from transformers import PreTrainedConfig

from .configuration_bert4rec import Bert4RecConfig
from .modeling_bert4rec import Bert4RecEncoder, Bert4RecForMaskedLM
from .modeling_gru4rec import Gru4RecConfig, Gru4RecForMaskedLM
from .modeling_sasrec import SasRecConfig, SasRecForMaskedLM

Objective = Literal["cloze", "next_item"]


@dataclass(frozen=True)
class Architecture:
    """An architecture of the registry."""

    config_class: type[Bert4RecConfig]  # its `model_type` is the name in recipes and in `config.json`
    model_class: type[Bert4RecForMaskedLM]  # with a head; its `base_class` is the class of the encoder
    objective: Objective  # `cloze` (`cloze_training`) or `next_item` (`next_item_training`)
    name: str  # in tables and model cards

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
"""Dict from model type, such as `bert4rec`, to architecture."""


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the architecture of a configuration; ValueError if neither its class nor a base class is registered.

    An unregistered subclass gets the architecture of its closest registered base class, with its own class and name.
    """
    kind = type(config)
    for base in kind.__mro__:
        row = ARCHITECTURES.get(vars(base).get("model_type", ""))
        if row is not None:
            return row if base is kind else replace(row, config_class=kind, name=kind.__name__.removesuffix("Config"))
    raise ValueError(
        f"Expected the configuration of a model of hf_bert4rec, found {kind.__name__}. Use a model such as "
        "`Bert4RecForMaskedLM`, or a subclass of it with a subclass of `Bert4RecConfig`."
    )


def register_architecture(
    config_class: type[Bert4RecConfig],
    model_class: type[Bert4RecForMaskedLM],
    objective: Objective = "cloze",
    name: str | None = None,
) -> Architecture:
    """Register a model of your own, so that it trains, saves and loads like the built-in ones; return its entry.

        class MyConfig(Bert4RecConfig):
            model_type = "mine"

        class MyForMaskedLM(Bert4RecForMaskedLM):
            config: MyConfig

        register_architecture(MyConfig, MyForMaskedLM)

    Also call this function before you load the model. Define the classes in a file that you import: only the code of
    such a file is saved with the weights.

    Args:
        config_class: Subclass of `Bert4RecConfig` with its own `model_type`.
        model_class: Subclass of `Bert4RecForMaskedLM` with the annotation `config: MyConfig`.
        objective: `next_item` if a position sees only the items before it, otherwise `cloze`.
        name: Name in tables and model cards. Default: the name of `config_class` without "Config".

    Raises:
        ValueError: The model type is that of a built-in model or of transformers, the configurations differ, or
            `objective` is unknown.
    """
    check_objective(objective)
    if config_class.model_type in {row.model_type for row in _BUILT_IN}:
        found = f"found {config_class.model_type!r}, which is built in"
        raise ValueError(f"{config_class.__name__} needs its own `model_type`, {found}. Set it in this class.")
    if model_class.config_class == config_class.__name__:  # with `from __future__ import annotations`
        model_class.config_class = config_class
    if model_class.config_class is not config_class:
        wanted, found = config_class.__name__, getattr(model_class.config_class, "__name__", model_class.config_class)
        advice = f"expected {wanted}. Write the annotation `config: {wanted}` in this class."
        raise ValueError(f"{model_class.__name__} has the configuration {found}, {advice}")
    row = Architecture(config_class, model_class, objective, name or config_class.__name__.removesuffix("Config"))
    register_configs(row)
    register_models(row)
    ARCHITECTURES[row.model_type] = row
    return row


def register_configs(*rows: Architecture) -> None:
    """Register configurations (default: the built-in ones); ValueError if transformers has a model of this type."""
    from transformers import AutoConfig  # not at the top: the package registers when transformers is imported

    for row in rows or _BUILT_IN:
        AutoConfig.register(row.model_type, row.config_class, exist_ok=row.model_type in ARCHITECTURES)


def register_models(*rows: Architecture) -> None:
    """Register model classes with AutoModel and AutoModelForMaskedLM, by default the built-in ones."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING

    for row in rows or _BUILT_IN:  # AutoModel.register refuses an encoder whose configuration is a base class
        MODEL_MAPPING.register(row.config_class, row.encoder_class, exist_ok=True)
        MODEL_FOR_MASKED_LM_MAPPING.register(row.config_class, row.model_class, exist_ok=True)


def check_objective(objective: str) -> None:
    """Raise ValueError unless `objective` is known."""
    if objective not in get_args(Objective):
        raise ValueError(f"`objective` must be {' or '.join(map(repr, get_args(Objective)))}, found {objective!r}.")
