"""Model cards, written from run facts, and the tables in them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.ranking import SAMPLED_METRICS, how_sampled
from .errors import is_repository
from .run_facts import RunFacts

CARD = "README.md"
TEMPLATE = Path(__file__).parent / "model_card_template.md"
REPEATED = ("ndcg@1", "mrr@1")  # equal to hr@1

Metrics = Mapping[str, Mapping[str, float]]  # model -> metric -> value


def model_card(facts: RunFacts) -> ModelCard:
    """Return the model card, with the results of the test split, or else of the validation split, as model-index."""
    facts, split = facts.published(), "test" if "test" in facts.results else "validation"
    metrics = facts.results.get(split, {})
    own = metrics.get(facts.model, {})
    sampled, source, terms = how_sampled(own), facts.recipe.get("start_from"), facts.data.terms
    results = []
    for name, value in own.items():
        if name.partition("_")[0] not in REPEATED:
            among = sampled if sampled and name.endswith(f"_{sampled}") else None
            protocol = facts.sampled_protocol if among else facts.protocol
            results.append(
                EvalResult(
                    task_type="fill-mask",
                    task_name="Next-item recommendation",
                    dataset_type=facts.data.name,
                    dataset_name=f"{facts.data.name} ({protocol})",
                    dataset_config=among.replace("_", "-") if among else "whole-catalog",  # separates the two protocols
                    dataset_split=split,
                    metric_type=name,
                    metric_name=name.upper(),
                    metric_value=round(value, 4),
                )
            )
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=[facts.model.lower(), "recommender-system", "sequential-recommendation"],
        model_name=facts.name,
        base_model=source if isinstance(source, str) and is_repository(source) and not Path(source).is_dir() else None,
        eval_results=results or None,
        license="other" if terms else None,
        license_name="terms-of-the-data" if terms else None,
    )
    score = own.get("ndcg@10", 0)
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        facts=facts,
        items=facts.data.items,
        split=split,
        interval=facts.intervals.get(split, {}).get(facts.model),
        differences=facts.differences.get(split, {}),
        better=[name for name, row in metrics.items() if row.get("ndcg@10", 0) > score],
        example=json.dumps(facts.example, ensure_ascii=False),
        results=results_table(metrics) if metrics else "",
        sampled_results=sampled_table(metrics),
        versions=", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    )


def results_table(metrics: Metrics, columns: Sequence[str] = ("hr@10", "ndcg@10", "mrr@10")) -> str:
    """Return a Markdown table with one row per model and one column per metric."""
    lines = [
        [model, *(f"{row[name]:.4f}" if name in row else "" for name in columns)] for model, row in metrics.items()
    ]
    return markdown_table(["", *map(str.upper, columns)], lines)


def sampled_table(metrics: Metrics) -> str:
    """Return a table of the metrics among sampled candidates (columns of the paper's Table 2), or "" without them."""
    kinds = {how_sampled(row) for row in metrics.values()}
    if len(kinds) != 1 or None in kinds:
        return ""
    suffix = f"_{kinds.pop()}"
    plain = {
        model: {name.removesuffix(suffix): value for name, value in row.items() if name.endswith(suffix)}
        for model, row in metrics.items()
    }
    return results_table(plain, SAMPLED_METRICS)


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table: the first column is aligned to the left, the others to the right."""
    rule = f"|---|{'---:|' * (len(header) - 1)}"
    first, *others = (f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in (header, *lines))
    return "\n".join([first, rule, *others])
