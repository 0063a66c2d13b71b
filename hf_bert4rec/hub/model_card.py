"""Model cards, written from run facts, and the tables in them."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev
from typing import get_args

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.ranking import SAMPLED_METRICS, Sampled, how_sampled
from .errors import is_repository
from .run_facts import ADDED_PARTS, RunFacts

CARD = "README.md"
TEMPLATE = Path(__file__).parent / "model_card_template.md"
REPEATED = ("ndcg@1", "mrr@1")  # equal to hr@1
PAPERS = {
    "BERT4Rec": " ([Sun et al., 2019](https://arxiv.org/abs/1904.06690))",
    "SASRec": " ([Kang and McAuley, 2018](https://arxiv.org/abs/1808.09781))",
    "GRU4Rec": " ([Hidasi et al., 2016](https://arxiv.org/abs/1511.06939))",
}
OWN_MODULE = "my_module"  # placeholder for the module of an architecture of your own, if its name is not known
COLUMNS = ("hr@10", "ndcg@10", "mrr@10")

Metrics = Mapping[str, Mapping[str, float]]  # model -> metric -> value


def card_checksum(file: Path) -> str:
    """Return the SHA-256 of a card. It differs from `RunFacts.card` if the card was edited."""
    return sha256(file.read_bytes()).hexdigest()


def set_last_section(folder: Path, heading: str, text: str) -> None:
    """Write a section at the end of the card of a folder, if it has a card, in place of an earlier one."""
    if not (file := folder / CARD).exists():
        return
    facts = None
    with suppress(OSError, ValueError):  # without facts, or with damaged ones, the card counts as edited
        facts = RunFacts.load(folder)
    edited = facts is None or facts.card != card_checksum(file)
    card = re.sub(rf"\n## {heading}\n.*?(?=\n## |\Z)", "", file.read_text("utf-8"), flags=re.DOTALL).rstrip()
    file.write_text(f"{card}\n\n## {heading}\n\n{text}\n", "utf-8")
    if facts is not None and not edited:
        dataclasses.replace(facts, card=card_checksum(file)).save(folder)


def model_card(facts: RunFacts, modules: Sequence[str] = ()) -> ModelCard:
    """Return the model card. Its model-index has the results of the test split, or else of the validation split.

    `modules` are the modules of the user that the training imported, which the commands and examples import too.
    """
    facts, split = facts.published(), "test" if "test" in facts.results else "validation"
    metrics = facts.results.get(split, {})
    own = metrics.get(facts.model, {})
    source, terms = facts.recipe.get("start_from"), facts.data.terms
    names = [name for name in own if name.partition("_")[0] not in REPEATED]
    results = [_result(facts, split, name, own[name]) for name in names]
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
    scores = {name: row.get("ndcg@10", 0) for name, row in metrics.items()}
    seeds = {str(facts.recipe.get("seed")): own, **facts.other_seeds.get(split, {})}
    rows = seeds.values() if len(seeds) > 1 else [{}]
    spread = {name: [row[name] for row in rows] for name in COLUMNS if all(name in row for row in rows)}
    options = {name: str(facts.recipe.get(name, "")) for name in ("architecture", "split")}
    named = {name: value.partition(":")[0] for name, value in options.items() if ":" in value}  # package.module:name
    is_own = facts.model not in PAPERS
    code = list(modules) or [OWN_MODULE] * (is_own and "architecture" not in named)
    registering = named.get("architecture", ", ".join(code)) if is_own else ""
    code += [module for module in named.values() if module not in code]
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        facts=facts,
        paper=PAPERS.get(facts.model, ""),
        parts=_parts(facts),
        module=registering,
        code=code,
        split=split,
        scores=scores,
        seeds=list(seeds),
        spread=[f"{name.upper()} {mean(of):.4f} ± {stdev(of):.4f}" for name, of in spread.items()],
        better=[name for name in scores if scores[name] > scores.get(facts.model, 0)],
        example=json.dumps(facts.example, ensure_ascii=False),
        results=results_table(metrics) if metrics else "",
        sampled_results=sampled_table(metrics),
    )


def _parts(facts: RunFacts) -> list[str]:
    """Return the parts that score some items in addition to the encoder."""
    followers, repeats = (facts.recipe.get(name) for name in ADDED_PARTS)
    chain = f"a Markov chain over the {followers} most frequent followers of each item (`num_followers`)"
    return [chain] * bool(followers) + ["a second attention for repeated interactions (`repeat_head`)"] * bool(repeats)


def _result(facts: RunFacts, split: str, metric: str, value: float) -> EvalResult:
    sampled = next((kind for kind in get_args(Sampled) if metric.endswith(f"_{kind}")), None)
    return EvalResult(
        task_type="fill-mask",
        task_name="Next-item recommendation",
        dataset_type=facts.data.name,
        dataset_name=f"{facts.data.name} ({facts.sampled_protocol if sampled else facts.protocol})",
        dataset_config=sampled.replace("_", "-") if sampled else "whole-catalog",  # separates the two protocols
        dataset_split=split,
        metric_type=metric,
        metric_name=metric.removesuffix(f"_{sampled}").upper() + f" ({sampled})" * bool(sampled),
        metric_value=round(value, 4),
    )


def results_table(metrics: Metrics, columns: Sequence[str] = COLUMNS, first: str = "") -> str:
    """Return a Markdown table with one row per model and one column per metric. `first` is the first header."""
    rows = ([model, *(f"{row[it]:.4f}" if it in row else "" for it in columns)] for model, row in metrics.items())
    return markdown_table([first, *map(str.upper, columns)], rows)


def sampled_table(metrics: Metrics) -> str:
    """Return a table as Table 2 of the BERT4Rec paper; "" without sampled metrics, or if kinds of candidates differ."""
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
