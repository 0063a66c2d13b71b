"""Histories on the Hub: the splits as Parquet, the tokenizer that numbers their items, and a card, pushed as one."""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from huggingface_hub import DatasetCard, DatasetCardData

from ..data.audit import audit
from ..data.formats import EMBEDDED, is_embedded
from ..data.histories import COLUMNS
from ..hub.push import create_repository, files_in, push_files
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .prepare import describe_data, prepare, protocol
from .recipe import Recipe

TOKENIZER = "tokenizer"  # folder of a data repository
LICENSE = "LICENSE"
TEMPLATE = Path(__file__).parent / "data_card_template.md"


def push_data(
    recipe: Recipe,
    repository: str,
    *,
    may_share: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """Put the histories of a recipe on the Hub in one commit: `load_dataset` gives the same rows and columns back.

    The commit replaces older histories of the repository, which stay in its past. Users keep the ids of the log.

    Args:
        recipe: Says which data, and how they are filtered and split.
        repository: Hub id; without an owner it is yours. Created if there is none.
        may_share: That you may publish data which do not travel with this package: nothing but their terms can tell.
        private: Whether to create it private; as its owner has set if not given.
        token: That of `hf auth login` or HF_TOKEN if not given.

    Returns:
        The address of the commit.

    Raises:
        FileExistsError: The repository holds other data.
        OSError: The Hub refuses it or cannot be reached, see `push_files`.
        PermissionError: The data are not embedded, and nobody said that they may be shared.
        ValueError: The data cannot be used as the recipe says, or the splits have not the same columns.
    """
    check_terms(recipe, may_share)
    if recipe.run.popularity_candidates or recipe.run.uniform_candidates:
        raise ValueError(
            "Expected splits with the same columns, found candidates, which training rows have not: take "
            "--popularity_candidates 0 (or --uniform_candidates 0), and draw them again where they are wanted."
        )
    interactions, tokenizer, histories = prepare(recipe)
    facts = {
        **dataclasses.asdict(describe_data(recipe, interactions)),
        "protocol": protocol(recipe, len(tokenizer.items))[0],
        "options": _data_options(recipe),
        "tokenizer": tokenizer,
    }
    repository = create_repository(repository, repo_type="dataset", private=private, token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, rows in histories.items():
            rows.to_parquet(folder / "data" / f"{name}.parquet")
        tokenizer.save_pretrained(folder / TOKENIZER)
        if is_embedded(recipe.run.data):  # its terms ask to travel with it
            shutil.copy(EMBEDDED / recipe.run.data / "README.txt", folder / LICENSE)
        data_card(repository, facts, histories, (folder / LICENSE).exists()).save(folder / "README.md")
        commit = push_files(
            repository,
            files_in(folder),
            marker=f"{TOKENIZER}/tokenizer.json",
            replaced=["data/*", f"{TOKENIZER}/*", LICENSE],
            commit_message=f"Upload the histories of {facts['name']}",
            repo_type="dataset",
            token=token,
        )
    return str(commit)


def check_terms(recipe: Recipe, may_share: bool) -> None:
    """Refuse what may not be given away: by default all but the embedded data.

    Raises:
        PermissionError: Names what is not embedded, and what its terms are known to be.
    """
    sources = [source for source in (recipe.run.data, recipe.run.titles, recipe.run.item_ids) if source]
    foreign = [source for source in sources if not is_embedded(source)]
    if foreign and not may_share:
        known = f"Its terms: {recipe.run.terms}" if recipe.run.terms else "Nothing is recorded of its terms."
        raise PermissionError(
            f"{foreign[0]} does not travel with this package: whether it may be redistributed is not known here, and "
            f"what is pushed holds the id, items and times of every user. {known} If you may share all that, say so: "
            "--i_may_share_this_data"
        )


def data_card(repository: str, facts: Mapping[str, Any], histories: DatasetDict, has_license: bool) -> DatasetCard:
    """The card of a data repository, from facts alone: what `push_data` knows, and what `audit` finds."""
    findings = audit(histories)
    card_data = DatasetCardData(
        pretty_name=f"{facts['name']}, histories",
        tags=["recommender-system", "sequential-recommendation"],
        license="other" if facts["terms"] else None,
        license_name="terms-of-the-data" if facts["terms"] else None,
        license_link=LICENSE if has_license else None,
        configs=[  # else the titles of the tokenizer, a Parquet file too, would be taken for data
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}.parquet"} for name in histories],
            }
        ],
    )
    return DatasetCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        **facts,
        repository=repository,
        special_tokens=SPECIAL_TOKENS,
        has_license=has_license,
        splits={name: rows.num_rows for name, rows in histories.items()},
        columns={name: COLUMNS[name] for name in histories["train"].column_names},
        leaks=[finding for finding in findings if finding.leak],
        told=[finding for finding in findings if not finding.leak],
    )


def _data_options(recipe: Recipe) -> dict[str, Any]:
    """The options of a recipe that shape its histories, as given; where the log lies is nobody's business."""
    fields = [field.name for section in (recipe.reading, recipe.splitting) for field in dataclasses.fields(section)]
    return {name: value for name, value in recipe.given.items() if name in {*fields, "split", "max_length"}}
