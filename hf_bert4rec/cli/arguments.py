"""The options of a recipe by what they are passed to, except the training arguments.

An option whose default is None here is passed on only if it is given: its default is written where it is read.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


def option(help: str, default: Any = None) -> Any:  # noqa: A002
    """Return a dataclass field with a text for the help."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class RunArguments:
    """Options of the run itself."""

    _argument_group_name = "data and protocol"

    data: str = option("Log to read: a file, a folder, a Hub dataset, or ml-latest-small (embedded).", "")
    titles: str | None = option("Table with the titles of the items, such as movies.csv.")
    title_item: str | None = option("Column of the item id in `titles`; found by its usual names if not given.")
    title_column: str | None = option("Column of the title in `titles`; found by its usual names if not given.")
    item_ids: str | None = option(
        "Table that renames the items: id in the log, id to use. `titles` then lists the ids of the log."
    )
    split: str = option("leave_one_out, at_time, train_on_all, or package.module:function.", "leave_one_out")
    max_length: int | None = option("Longest input, including the [MASK] of the query (default: of the model).")
    popularity_candidates: int = option("Also rank among N popular items per user; 100 in the paper.", 0)
    uniform_candidates: int = option("Also rank among N uniformly drawn items per user.", 0)
    architecture: str = option("bert4rec, sasrec, gru4rec, or package.module:ConfigClass.", "bert4rec")
    start_from: str | None = option("Checkpoint of another catalog whose encoder and shared items are the start.")
    match_items: Literal["id", "title"] = option("How items of `start_from` are matched.", "id")
    name: str | None = option("Name of the checkpoint on its card (default: name of the output folder).")
    terms: str | None = option("Terms of use of the data, for the card.")
    example: list[str] | None = field(default=None, metadata={"help": "History of item ids for summary and card."})


@dataclass(frozen=True)
class ReadingArguments:
    """Options of `load_interactions`."""

    _argument_group_name = "reading the log"

    format: str | None = option("Format of the log, if its file name does not tell: csv, parquet, json, …")
    user: str | None = option("Column of the user: name, or position from 0.")
    item: str | None = option("Column of the item.")
    timestamp: str | None = option("Column of the time: numbers, or dates.")
    rating: str | None = option("Column of the rating, read only with `min_rating`.")
    min_rating: float | None = option("Drop interactions with a lower rating.")
    min_user_interactions: int | None = option("Drop users with fewer interactions.")
    min_item_interactions: int | None = option("Drop items with fewer interactions.")
    keep_repeats: bool | None = option("Keep later interactions of a user with the same item.")
    separator: str | None = option("Separator of a text file, if unusual.")
    encoding: str | None = option("Encoding of a text file.")


@dataclass(frozen=True)
class SplittingArguments:
    """Options of the split. A split of your own can have more: they are read from its signature."""

    _argument_group_name = "splitting"

    validation_time: str | None = option("at_time: validation targets start here; a number, or a date (2016-01-31).")
    test_time: str | None = option("at_time: test targets start here.")
    window_step: float | None = option("Step between training windows, as a share of the maximum length.")
    validation_in_train: bool | None = option("Train on the validation targets too; there is no validation then.")


@dataclass(frozen=True)
class ModelArguments:
    """Options of the configuration. An architecture of your own can have more: they are read from its class."""

    _argument_group_name = "model"

    hidden_size: int | None = option("Width of the item embeddings and of every layer.")
    num_hidden_layers: int | None = option("Number of layers.")
    num_attention_heads: int | None = option("Attention heads per layer.")
    intermediate_size: int | None = option("Width of the feed-forward layers.")
    hidden_act: str | None = option("Activation function.")
    hidden_dropout_prob: float | None = option("Dropout on the embeddings and on the output of every sublayer.")
    attention_probs_dropout_prob: float | None = option("Dropout on the attention probabilities.")
    initializer_range: float | None = option("Standard deviation of the initial weights.")
    layer_norm_eps: float | None = option("Epsilon of the layer normalizations.")
    rope_theta: float | None = option("Base of the rotary position embeddings; none: learned positions only.")
    conv_kernel_size: int | None = option("Width of the convolution over item embeddings, odd; none: no convolution.")
    prediction_head: bool | None = option("Dense layer between encoder and output, as in the paper (equation 7).")
    tie_word_embeddings: bool | None = option("Use the item embeddings as output matrix.")
    loss: str | None = option("softmax, or a loss over negatives: sampled_softmax, gbce, bce.")
    loss_chunk_size: int | None = option("Positions whose softmax is computed at a time.")
    num_negatives: int | None = option("Negatives of a sampled loss.")
    share_negatives: bool | None = option("Share negatives between the positions of a batch.")
    gbce_calibration: float | None = option("Calibration t of gbce, from 0 to 1.")
    exclude_history: bool | None = option("Exclude items of the history from rankings and recommendations.")


@dataclass(frozen=True)
class MaskingArguments:
    """Options of `DataCollatorForCloze`."""

    _argument_group_name = "cloze masking"

    mask_probability: float | None = option("Probability that an item is masked.")
    last_item_probability: float | None = option("Share of rows in which only the last item is masked.")
    max_predictions: int | None = option("Maximum number of masked items per row.")
