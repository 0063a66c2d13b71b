"""Arguments of the Trainer for the two objectives: cloze (masked items) and next-item prediction."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import TrainerCallback

from ..data.data_collator import DataCollatorForCloze, DataCollatorForNextItem
from ..data.tokenization import ItemTokenizer
from ..evaluation.ranking import Sampled
from ..evaluation.trainer_evaluation import metrics_of_ranks, ranks_of_logits
from .callbacks import with_package_callbacks


def cloze_training(
    tokenizer: ItemTokenizer,
    *,
    callbacks: Sequence[TrainerCallback] | None = None,
    sampled: Sampled = "popularity_sampled",
    **masking: Any,
) -> dict[str, Any]:
    """Return the arguments of `RecommendationTrainer` for cloze training and evaluation by ranking.

        RecommendationTrainer(model, args, train_dataset=…, eval_dataset=…, **cloze_training(tokenizer))

    Args:
        tokenizer: Tokenizer of the items. It is saved with every checkpoint.
        callbacks: Only for the stock `Trainer`: your own callbacks, or `[]`. The callbacks of the package are added,
            without which a resumed or distributed run may skip or repeat rows. `RecommendationTrainer` adds them too.
        sampled: How the column `candidates` of the evaluation rows was drawn, "popularity_sampled" or
            "uniform_sampled". It is the suffix of metric names, as in `ndcg@10_uniform_sampled`.
        **masking: Arguments of `DataCollatorForCloze`.
    """
    return {
        **({} if callbacks is None else {"callbacks": with_package_callbacks(callbacks)}),
        "processing_class": tokenizer,
        "data_collator": DataCollatorForCloze(tokenizer, **masking),
        "compute_metrics": partial(metrics_of_ranks, sampled=sampled),
        "preprocess_logits_for_metrics": ranks_of_logits,
    }


def next_item_training(
    tokenizer: ItemTokenizer,
    *,
    callbacks: Sequence[TrainerCallback] | None = None,
    sampled: Sampled = "popularity_sampled",
) -> dict[str, Any]:
    """Return the arguments of `RecommendationTrainer` for next-item training, as `cloze_training` without masking."""
    collator = DataCollatorForNextItem(tokenizer)
    return {**cloze_training(tokenizer, callbacks=callbacks, sampled=sampled), "data_collator": collator}
