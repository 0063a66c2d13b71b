"""BERT4Rec in the Hugging Face ecosystem: train on a log of interactions, evaluate, share, recommend.

After `import hf_bert4rec`, the models work with AutoConfig, AutoModel, AutoModelForMaskedLM and AutoTokenizer, and
`transformers.pipeline` has the task `next-item-recommendation`. Public names are imported when they are first used.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .registration import register_with_transformers

if TYPE_CHECKING:  # the public names, for type checkers and for `__getattr__`
    from .data.audit import audit
    from .data.candidates import popularity_candidates, uniform_candidates
    from .data.data_collator import DataCollatorForCloze, DataCollatorForNextItem
    from .data.formats import FORMATS
    from .data.histories import build_histories, sort_by_user
    from .data.interactions import load_interactions, rename_items
    from .data.item_tables import load_item_features, load_titles
    from .data.splits import SPLITS, Split, before, leave_one_out, new_interactions, split_at_time, train_on_all
    from .data.tokenization import ItemTokenizer, extend_item_tokenizer, item_tokenizer
    from .evaluation.baselines import BASELINES, MarkovChain, Popularity
    from .evaluation.ranking import ranking_metrics, target_ranks
    from .hub.push import push_checkpoint
    from .inference.attributes import ItemAttributes
    from .inference.batch import BatchRecommender, recommend_to_parquet
    from .inference.export import OnnxRecommender, export_checkpoint
    from .inference.pipeline import NextItemRecommendationPipeline, pipeline
    from .inference.rules import at_most, boost, diversify
    from .models.configuration_bert4rec import Bert4RecConfig
    from .models.item_loss import LOSSES, ItemLoss
    from .models.modeling_bert4rec import Bert4RecForMaskedLM, Bert4RecModel
    from .models.modeling_gru4rec import Gru4RecConfig, Gru4RecForMaskedLM, Gru4RecModel
    from .models.modeling_sasrec import SasRecConfig, SasRecForMaskedLM, SasRecModel
    from .models.registry import ARCHITECTURES, register_architecture
    from .training.arguments import RecommendationTrainingArguments
    from .training.callbacks import ClozeCallback, ResourceCallback
    from .training.catalog import add_items, remove_items
    from .training.initialization import count_transitions, initialize_items
    from .training.objectives import cloze_training, next_item_training
    from .training.optimizer import muon
    from .training.resources import estimate_memory
    from .training.settings import recommended_settings
    from .training.trainer import RecommendationTrainer
    from .training.transfer import transfer

NEXT_ITEM_METRIC = str(Path(__file__).parent / "evaluation" / "metrics" / "next_item")
"""Path of the metric with HR@k, NDCG@k and MRR@k, for `evaluate.load(NEXT_ITEM_METRIC)`."""


def _find_public_modules() -> dict[str, str]:
    """Return the module of each public name, from the imports above."""
    imports = [node for node in ast.walk(ast.parse(Path(__file__).read_bytes())) if isinstance(node, ast.ImportFrom)]
    return {alias.name: f".{node.module}" for node in imports if "." in str(node.module) for alias in node.names}


_MODULES = _find_public_modules()
__all__ = ["NEXT_ITEM_METRIC", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_MODULES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_transformers()
