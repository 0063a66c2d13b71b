"""The configuration of BERT4Rec, and the one place that says which rows of the item table are not items."""

from difflib import get_close_matches
from typing import Any, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = ("[PAD]", "[MASK]", "[UNK]")
"""Rows 0, 1 and 2 of every item table. Items start at row `len(SPECIAL_TOKENS)` and are never renumbered."""

Loss = Literal["softmax", "sampled_softmax", "gbce", "bce"]
LOSSES = get_args(Loss)


@strict
class Bert4RecConfig(PreTrainedConfig):
    """Shape and regularisation of a BERT4Rec encoder (Sun et al., CIKM 2019).

    The defaults are the paper's model for MovieLens-1M at hidden size 64.

    Args:
        vocab_size: Rows of the item table: `len(SPECIAL_TOKENS)` plus the number of items, `len(tokenizer)`.
        hidden_size: Width d of the item embeddings and of every layer; a multiple of `num_attention_heads`.
        num_hidden_layers: Transformer layers L.
        num_attention_heads: Attention heads h of a layer.
        intermediate_size: Width of the feed-forward layer (4 d in the paper).
        hidden_act: Activation of the feed-forward layer and of the head.
        hidden_dropout_prob: Dropout on the embeddings and on the output of every sublayer.
        attention_probs_dropout_prob: Dropout on the attention probabilities.
        max_position_embeddings: Longest input N, the [MASK] of the query included.
        initializer_range: Standard deviation of the normal that weights start from, cut off at twice that.
        layer_norm_eps: Epsilon of the layer normalisations.
        rope_theta: Base of the wavelengths of rotary position embeddings (Su et al., 2021), which attention adds to the
            learned positions: it then sees distances from the first step. None, as in the paper: learned ones alone.
        conv_kernel_size: Width of a depthwise convolution over the item embeddings, odd: with 3 each position starts
            from its two neighbours as well, so that a [MASK] starts from items. None, as in the paper: from itself.
        prediction_head: Whether a dense layer, the activation and a normalisation stand between the encoder and the
            item table (paper, equation 7). Without them the encoder's states meet the table directly, as in SASRec:
            with the convolution, validation NDCG@10 of .058 instead of .043 on Amazon Beauty 5-core, one seed.
        pad_token_id: Row of [PAD], part of the id contract: 0.
        bos_token_id: None: a history has no start token.
        eos_token_id: None: a history has no end token.
        tie_word_embeddings: Whether the item table is also the output matrix (paper, section 3.5).
        loss: What training minimises: `softmax` over the whole catalogue, or past some hundred thousand items
            `sampled_softmax`, `gbce` or `bce` over negatives (`item_loss` says what each is).
        loss_chunk_size: Positions whose softmax is made at a time; memory grows with this times the catalogue.
        num_negatives: Negatives of a sampled loss.
        share_negatives: Whether the positions of a batch share their negatives, which costs far less.
        gbce_calibration: t of `gbce`, from 0 (plain `bce`) to 1 (the sigmoid of a score is the item's probability).

    Raises:
        ValueError: A size or probability is out of range, heads do not divide `hidden_size`, no row is an item's, there
            is no such loss, or there are fewer other items than negatives.
    """

    model_type = "bert4rec"
    code_files = ("configuration_bert4rec", "modeling_bert4rec")

    vocab_size: int = 3419
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 256
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.2
    attention_probs_dropout_prob: float | int = 0.2
    max_position_embeddings: int = 200
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    rope_theta: float | int | None = None
    conv_kernel_size: int | None = None
    prediction_head: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = True
    loss: Loss = "softmax"
    loss_chunk_size: int = 128
    num_negatives: int = 256
    share_negatives: bool = True
    gbce_calibration: float | int = 0.75

    def __post_init__(self, **kwargs: Any) -> None:
        names = [name for name in Bert4RecConfig.__annotations__ if not name.endswith("token_id")]
        for name in kwargs:  # a configuration keeps what it does not know, so a slip of the pen would do nothing
            if near := get_close_matches(name, names, 1, cutoff=0.8):
                logger.warning("Nobody reads %r. Did you mean %r?", name, near[0])
        super().__post_init__(**kwargs)
        # Every saved config.json names the code beside it (`__init__.py` says how it gets there): transformers itself
        # would name the saved class alone, and AutoModel would not find what AutoModelForMaskedLM finds.
        kind, (config_file, model_file) = type(self).__name__.removesuffix("Config"), self.code_files
        self.auto_map = {
            "AutoConfig": f"{config_file}.{kind}Config",
            "AutoModel": f"{model_file}.{kind}Model",
            "AutoModelForMaskedLM": f"{model_file}.{kind}ForMaskedLM",
        }

    def validate_sizes(self) -> None:
        """Refuse shapes that no model can have; `@strict` calls every `validate_*` method on construction."""
        for name in (
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "loss_chunk_size",
            "num_negatives",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, found {getattr(self, name)}.")
        if self.hidden_size < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a positive multiple of `num_attention_heads`, found {self.hidden_size} "
                f"and {self.num_attention_heads}."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, found {getattr(self, name)}.")
        if self.vocab_size <= len(SPECIAL_TOKENS):
            raise ValueError(
                f"`vocab_size` counts the {len(SPECIAL_TOKENS)} special rows {', '.join(SPECIAL_TOKENS)} and at least "
                f"one item, found {self.vocab_size}. Pass `vocab_size=len(tokenizer)`."
            )
        for name in ("initializer_range", "layer_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, found {getattr(self, name)}.")
        if self.pad_token_id != SPECIAL_TOKENS.index("[PAD]"):
            raise ValueError(f"`pad_token_id` must be 0, the row of [PAD], found {self.pad_token_id}.")

    def validate_training_loss(self) -> None:
        """Refuse a loss that cannot be made."""
        others = self.vocab_size - len(SPECIAL_TOKENS) - 1
        if self.loss != "softmax" and self.num_negatives > others:
            raise ValueError(
                f"`num_negatives` must be at most {others}, the items other than the target, found "
                f"{self.num_negatives}. Lower it, or with so few items take loss='softmax'."
            )
        if not 0 <= self.gbce_calibration <= 1:
            raise ValueError(f"`gbce_calibration` must be from 0 to 1, found {self.gbce_calibration}.")

    def validate_variants(self) -> None:
        """Refuse rotary positions and convolutions that there cannot be."""
        head_width = self.hidden_size // max(1, self.num_attention_heads)  # checks run in the order of their names
        if self.rope_theta is not None and (self.rope_theta <= 1 or head_width % 2):
            raise ValueError(
                f"`rope_theta` must be above 1 and a head's width even, found {self.rope_theta} and {head_width}."
            )
        if self.conv_kernel_size is not None and (self.conv_kernel_size < 3 or self.conv_kernel_size % 2 == 0):
            raise ValueError(f"`conv_kernel_size` must be odd and at least 3, or None, found {self.conv_kernel_size}.")
