"""BERT4Rec in the Hugging Face ecosystem: train on a log of who acted on what, share, recommend.

Importing this registers the classes with AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer and the task
`next-item-recommendation` with `transformers.pipeline`.
"""

import logging
from pathlib import Path

from transformers import AutoTokenizer

from .data.candidates import popularity_candidates, uniform_candidates
from .data.data_collator import DataCollatorForCloze, DataCollatorForNextItem
from .data.histories import build_histories, sort_by_user
from .data.interactions import load_interactions, load_titles, rename_items
from .data.splits import SPLITS, Split, before, leave_one_out, split_at_time, train_on_all
from .data.tokenization import ItemTokenizer, extend_item_tokenizer, item_tokenizer
from .evaluation.baselines import MarkovChain, Popularity
from .evaluation.ranking import ranking_metrics, target_ranks
from .inference.pipeline import NextItemRecommendationPipeline, pipeline
from .models.configuration_bert4rec import Bert4RecConfig
from .models.configuration_gru4rec import Gru4RecConfig
from .models.configuration_sasrec import SasRecConfig
from .models.modeling_bert4rec import Bert4RecForMaskedLM, Bert4RecModel
from .models.modeling_gru4rec import Gru4RecForMaskedLM, Gru4RecModel
from .models.modeling_sasrec import SasRecForMaskedLM, SasRecModel
from .models.registry import ARCHITECTURES, register_architecture, register_configs, register_models
from .training.optimizer import muon
from .training.resources import estimate_memory
from .training.trainer import RecommendationTrainer
from .training.training import (
    ClozeCallback,
    RecommendationTrainingArguments,
    ResourceCallback,
    cloze_training,
    next_item_training,
)
from .training.transfer import transfer

__all__ = [
    "NEXT_ITEM_METRIC",
    "SPLITS",
    "Bert4RecConfig",
    "Bert4RecForMaskedLM",
    "Bert4RecModel",
    "ClozeCallback",
    "DataCollatorForCloze",
    "DataCollatorForNextItem",
    "Gru4RecConfig",
    "Gru4RecForMaskedLM",
    "Gru4RecModel",
    "ItemTokenizer",
    "MarkovChain",
    "NextItemRecommendationPipeline",
    "Popularity",
    "RecommendationTrainer",
    "RecommendationTrainingArguments",
    "ResourceCallback",
    "SasRecConfig",
    "SasRecForMaskedLM",
    "SasRecModel",
    "Split",
    "before",
    "build_histories",
    "cloze_training",
    "estimate_memory",
    "extend_item_tokenizer",
    "item_tokenizer",
    "leave_one_out",
    "load_interactions",
    "load_titles",
    "muon",
    "next_item_training",
    "pipeline",
    "popularity_candidates",
    "ranking_metrics",
    "register_architecture",
    "rename_items",
    "sort_by_user",
    "split_at_time",
    "target_ranks",
    "train_on_all",
    "transfer",
    "uniform_candidates",
]

NEXT_ITEM_METRIC = str(Path(__file__).parent / "evaluation" / "metrics" / "next_item")
"""Where `evaluate.load` finds HR@k, NDCG@k and MRR@k."""

register_configs()
register_models()
for _architecture in ARCHITECTURES.values():
    AutoTokenizer.register(_architecture.config_class, fast_tokenizer_class=ItemTokenizer, exist_ok=True)

# What was read and what was dropped is reported on standard error; logging.getLogger("hf_bert4rec") is yours to change.
if not logging.getLogger(__name__).handlers:
    logging.getLogger(__name__).addHandler(logging.StreamHandler())
    logging.getLogger(__name__).setLevel(logging.INFO)
    logging.getLogger(__name__).propagate = False  # once, also where the root logger prints
