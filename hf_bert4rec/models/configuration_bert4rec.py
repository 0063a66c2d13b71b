"""Configuration of BERT4Rec."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

from .item_loss import LOSSES
from .special_tokens import SPECIAL_TOKENS as SPECIAL_TOKENS

logger = logging.get_logger(__name__)

MOST_LABELS = 1000  # transformers creates a name for each of `num_labels`
RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ("from 1 to 1000", lambda value: 1 <= value <= 1000, ("num_hidden_layers",)),  # more take minutes to create
    (
        "at least 1",
        lambda value: value >= 1,
        ("num_attention_heads", "intermediate_size", "max_position_embeddings", "loss_chunk_size", "num_negatives"),
    ),
    ("at least 0 and below 1", lambda value: 0 <= value < 1, ("hidden_dropout_prob", "attention_probs_dropout_prob")),
    ("from 0 to 1000", lambda value: 0 <= value <= 1000, ("num_followers",)),
    ("above 1, or None", lambda value: value is None or value > 1, ("rope_theta",)),
    ("above 0 and at most 10", lambda value: 0 < value <= 10, ("initializer_range", "layer_norm_eps")),
    ("from 0 to 1", lambda value: 0 <= value <= 1, ("gbce_calibration",)),
    ("0, the row of [PAD]", lambda value: value == 0, ("pad_token_id",)),
    ("odd and at least 3, or None", lambda value: value is None or (value > 1 and value % 2), ("conv_kernel_size",)),
)
"""Expected range, its check, and the options with this range."""


@strict
class Bert4RecConfig(PreTrainedConfig):
    """Configuration of a BERT4Rec model (Sun et al., CIKM 2019).

    The defaults are those of this package. `recommended_settings` returns the options to change for a log, and
    `Bert4RecConfig.paper(vocab_size)` the configuration of the published model.

    Args:
        vocab_size: Number of rows of the item table, `len(tokenizer)`: the special tokens and the items.
        hidden_size: Width d of the item embeddings and of every layer; a multiple of `num_attention_heads`.
        num_hidden_layers: Number of Transformer layers L.
        num_attention_heads: Number of attention heads h per layer.
        intermediate_size: Width of the feed-forward layer (4 d in the paper).
        hidden_act: Activation of the feed-forward layer and of the prediction head, a name in
            `transformers.activations.ACT2FN`.
        hidden_dropout_prob: Dropout on the embeddings and on the output of every sublayer.
        attention_probs_dropout_prob: Dropout on the attention probabilities.
        max_position_embeddings: Longest input N, including the [MASK] of the query.
        initializer_range: Standard deviation of the normal distribution of the initial weights, truncated at twice
            this value.
        layer_norm_eps: Epsilon of the layer normalizations.
        learned_positions: Whether a learned vector of the position is added to each item, as in the paper. On a small
            log of short histories, rotary positions alone were better.
        rope_theta: Base of the wavelengths of rotary position embeddings in attention (Su et al., 2021). None, as in
            the paper: no rotary positions; this needs `learned_positions=True`.
        conv_kernel_size: Odd width of a depthwise convolution over the item embeddings. With 3, each input also
            contains its two neighbors, so that a [MASK] contains items. None, as in the paper: no convolution.
        identity_attention: Whether the value and output matrices of attention start at the identity, plus the random
            weights. Attention then starts as a mean of item vectors, which the item table can score directly. False,
            as in the paper: random weights only.
        prediction_head: Whether a dense layer, the activation and a layer normalization follow the encoder (paper,
            equation 7). Otherwise a score is the product of an encoder state and an item vector, plus the item's bias.
        repeat_head: Whether items of the history have a second score, for repeated interactions, as in RepeatNet (Ren
            et al., AAAI 2019). For data with repeat consumption; it needs the loss `softmax`. False, as in the paper:
            one score per item.
        num_followers: Number of followers per item, which have a second score after this item. Followers are the items
            that came right after the item in the training histories of the most users. For data in which the next item
            often depends on the last one; it needs the loss `softmax`, and `initialize_items`, which counts followers.
            0, as in the paper: one score per item.
        pad_token_id: Row of [PAD], always 0.
        bos_token_id: None: a history has no start token.
        eos_token_id: None: a history has no end token.
        tie_word_embeddings: Whether the item table is also the output matrix (paper, section 3.5).
        loss: Training loss: `softmax` over the whole catalog, or `sampled_softmax`, `gbce` or `bce` over sampled
            negatives, for 100,000 items or more. The module `hf_bert4rec.models.item_loss` describes them.
        loss_chunk_size: Number of positions whose softmax is computed at a time; on a GPU at least 2^25 / `vocab_size`.
            Memory grows with this number · `vocab_size`.
        num_negatives: Number of negatives per position of a sampled loss, below the number of items.
        share_negatives: Whether all positions of a batch share their negatives, which is much faster.
        gbce_calibration: t of `gbce`, from 0 (plain `bce`) to 1 (the sigmoid of a score is the item's probability).
        exclude_history: Whether rankings and recommendations exclude the items of the user's history. False for data
            with repeat consumption, such as music and groceries.

    Raises:
        huggingface_hub.errors.StrictDataclassError: A value has the wrong type or is out of range, `hidden_act` is
            unknown, or two options cannot be combined, such as `repeat_head` and another loss than `softmax`.
    """

    model_type = "bert4rec"
    _auto_class = "AutoConfig"  # `save_pretrained` copies this file next to the weights
    _paper_settings: ClassVar[dict[str, Any]] = {
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.2,
        "max_position_embeddings": 200,
        "initializer_range": 0.02,
        "learned_positions": True,
        "rope_theta": None,
        "conv_kernel_size": None,
        "identity_attention": False,
        "prediction_head": True,
    }

    vocab_size: int = 3419
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 256
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.4
    attention_probs_dropout_prob: float | int = 0.3
    max_position_embeddings: int = 50
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    learned_positions: bool = False
    rope_theta: float | int | None = 200
    conv_kernel_size: int | None = 3
    identity_attention: bool = True
    prediction_head: bool = False
    repeat_head: bool = False
    num_followers: int = 0
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = True
    loss: str = "softmax"
    loss_chunk_size: int = 128
    num_negatives: int = 256
    share_negatives: bool = True
    gbce_calibration: float | int = 0.75
    exclude_history: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        strict(cls)  # transformers gives each subclass an `__init__` of its own, which checks nothing

    def __post_init__(self, **kwargs: Any) -> None:
        names = [name for name in self.__dataclass_fields__ if not name.endswith("token_id")]
        kwargs.pop("model_type", None)  # a class attribute; a saved configuration contains it
        for name in kwargs:  # transformers keeps unknown options, so a typo would have no effect
            if near := get_close_matches(name, names, 1, cutoff=0.8):
                logger.warning("Unknown option %r of %s. Did you mean %r?", name, type(self).__name__, near[0])
        labels = kwargs.get("num_labels")
        if labels is not None and not (isinstance(labels, int) and 0 <= labels <= MOST_LABELS):
            raise ValueError(f"`num_labels` must be an integer from 0 to {MOST_LABELS}, found {labels!r}.")
        super().__post_init__(**kwargs)

    @classmethod
    def paper(cls, vocab_size: int, **changes: Any) -> Self:
        """Return the configuration of the published BERT4Rec for MovieLens-1M with hidden size 64.

        `SasRecConfig.paper` and `Gru4RecConfig.paper` return similar sizes, not the published SASRec and GRU4Rec.

        Source: Sun et al., CIKM 2019, section 4.4, and the configuration files of the authors' code
        (`bert_config_ml-1m_64.json`), which set the dropout probabilities.

        Args:
            vocab_size: As for the class.
            **changes: Options of the class, which take precedence.
        """
        return cls(**{**cls._paper_settings, "vocab_size": vocab_size, **changes})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a saved configuration.

        A saved configuration contains every option. If an option is missing, the configuration was saved by a version
        without this option. Its models had the published settings, which are used here, not the current defaults.
        """
        return super().from_dict({**cls._paper_settings, **config_dict}, **kwargs)

    def validate_ranges(self) -> None:
        """Check each number by itself. `@strict` calls every `validate_*` method, in the order of their names."""
        for expected, valid, names in RANGES:
            for name in names:
                if not valid(getattr(self, name)):
                    raise ValueError(f"`{name}` must be {expected}, found {getattr(self, name)}.")

    def validate_sizes(self) -> None:
        """Check that `num_attention_heads` divides `hidden_size`, and that `vocab_size` has room for an item."""
        if self.hidden_size < 1 or self.hidden_size % self.num_attention_heads:
            found = f"found {self.hidden_size} and {self.num_attention_heads}"
            raise ValueError(f"`hidden_size` must be a positive multiple of `num_attention_heads`, {found}.")
        if self.vocab_size <= len(SPECIAL_TOKENS):
            raise ValueError(
                f"`vocab_size` must be at least {len(SPECIAL_TOKENS) + 1} ({', '.join(SPECIAL_TOKENS)} and one item), "
                f"found {self.vocab_size}. Pass `vocab_size=len(tokenizer)`."
            )

    def validate_positions(self) -> None:
        """Check that the model has rotary or learned positions."""
        if self.rope_theta is None and not self.learned_positions:
            raise ValueError("Expected `rope_theta` or `learned_positions`, found None and False. Set one of the two.")

    def validate_activation(self) -> None:
        """Check the name of the activation."""
        from transformers.activations import ACT2FN  # imports torch.nn, which this file does not need otherwise

        if self.hidden_act not in ACT2FN:
            near = get_close_matches(self.hidden_act, ACT2FN, 3, cutoff=0.5)
            raise ValueError(
                f"`hidden_act` must be a name in transformers.activations.ACT2FN, found {self.hidden_act!r}."
                + (f" Did you mean {' or '.join(map(repr, near))}?" if near else "")
            )

    def validate_training_loss(self) -> None:
        """Check the options of the loss."""
        for name in ("repeat_head", "num_followers"):
            if getattr(self, name) and self.loss != "softmax":
                advice = f"Use 'softmax', or a model without `{name}`."
                raise ValueError(f"`{name}` needs the loss 'softmax', found {self.loss!r}. {advice}")
        if self.loss not in LOSSES:  # a model with a custom loss can recommend without the code of the loss
            logger.warning_once(f"Unknown loss {self.loss!r}. To train with this loss, add it to `hf_bert4rec.LOSSES`.")
            return
        others = self.vocab_size - len(SPECIAL_TOKENS) - 1
        if LOSSES[self.loss].samples_negatives and self.num_negatives > others:
            raise ValueError(
                f"`num_negatives` must be at most {others}, the number of items other than the target, found "
                f"{self.num_negatives}. Lower `num_negatives`, or use the loss `softmax`."
            )
