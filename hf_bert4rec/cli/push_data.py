"""Push histories to the Hub: the splits as Parquet, the tokenizer of their items, and a card, in one commit."""

import dataclasses
import shutil
import tempfile
from pathlib import Path

from datasets import DatasetDict
from huggingface_hub import DatasetCard, DatasetCardData

from ..data.audit import audit
from ..data.formats import EMBEDDED, is_embedded
from ..data.histories import COLUMNS
from ..data.tokenization import ItemTokenizer
from ..hub.push import create_repository, files_in, push_files
from ..hub.run_facts import DataFacts
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .prepare import describe_data, prepare, protocol
from .recipe import Recipe

TEMPLATE = Path(__file__).parent / "data_card_template.md"


def push_data(
    recipe: Recipe,
    repository: str,
    *,
    may_share: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """Push the splits of a recipe as a dataset in one commit, and return the URL of the commit.

    The tokenizer is pushed too. The rows are for all models: `recommended_settings` and, from a checkpoint folder, its
    option `prefixes` are not applied. User IDs are pushed as they are in the log. Earlier versions stay in the commits
    of the repository. The repository is created if it does not exist, in your account if the name has no owner.
    `private` and `token` are as for `push_checkpoint`. PermissionError for data that is not part of this package,
    unless `may_share` is true; ValueError if the recipe draws candidates; OSError as for `push_files`.
    """
    run = recipe.run
    sources = (run.data, run.history, run.titles, run.item_ids, run.item_features, run.continue_from)
    foreign = [source for source in sources if source and not is_embedded(source)]
    if foreign and not may_share:
        terms = f"Terms of the data: {run.terms.rstrip('.')}." if run.terms else "No terms of use are recorded."
        found = f"{foreign[0]} is not part of this package, and histories contain the ID, items and times of every user"
        raise PermissionError(f"{found}. {terms} Add `--i_may_share_this_data` if you are allowed to publish the data.")
    if run.popularity_candidates or run.uniform_candidates:
        options = "`--popularity_candidates 0` and `--uniform_candidates 0`"
        advice = f"Set {options}, and draw candidates after `load_dataset`."
        raise ValueError(f"Candidates cannot be pushed, because training rows have none. {advice}")
    # Recommended settings, such as `prefixes`, suit one model, but the data is for all models.
    run = dataclasses.replace(run, recommended_settings=False)
    chosen = {"prefixes"} if recipe.source and Path(recipe.source).is_dir() else set()  # for the model in the folder
    given = {name: value for name, value in recipe.given.items() if name not in chosen}
    recipe, interactions, tokenizer, histories = prepare(dataclasses.replace(recipe, run=run, given=given))
    data = describe_data(recipe, interactions)
    repository = create_repository(repository, repo_type="dataset", private=private, token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, rows in histories.items():
            rows.to_parquet(folder / "data" / f"{name}.parquet")
        tokenizer.save_pretrained(folder / "tokenizer")
        if is_embedded(run.data):  # its terms must be distributed with it
            shutil.copy(EMBEDDED / run.data / "README.txt", folder / "LICENSE")
        _card(repository, recipe, data, tokenizer, histories).save(folder / "README.md")
        commit = push_files(
            repository,
            files_in(folder),
            marker="tokenizer/tokenizer.json",
            replaced=["data/*", "tokenizer/*", "LICENSE"],
            commit_message=f"Upload the histories of {data.name}",
            repo_type="dataset",
            token=token,
        )
    return str(commit)


def _card(
    repository: str, recipe: Recipe, data: DataFacts, tokenizer: ItemTokenizer, histories: DatasetDict
) -> DatasetCard:
    has_license = is_embedded(recipe.run.data)
    files = [{"split": name, "path": f"data/{name}.parquet"} for name in histories]
    published = {*recipe.options("reading"), *recipe.options("splitting"), "split", "max_length"}  # no path of the log
    return DatasetCard.from_template(
        DatasetCardData(
            pretty_name=f"{data.name}, histories",
            tags=["recommender-system", "sequential-recommendation"],
            license="other" if data.terms else None,
            license_name="terms-of-the-data" if data.terms else None,
            license_link="LICENSE" if has_license else None,
            configs=[{"config_name": "default", "data_files": files}],  # items.parquet of the tokenizer is no data
        ),
        template_path=str(TEMPLATE),
        **dataclasses.asdict(data),
        repository=repository,
        protocol=protocol(recipe, len(tokenizer.items))[0],
        options={name: value for name, value in recipe.given.items() if name in published},
        tokenizer=tokenizer,
        special_tokens=SPECIAL_TOKENS,
        has_license=has_license,
        histories=histories,
        columns={name: COLUMNS[name] for name in histories["train"].column_names},
        findings=audit(histories),
    )
