"""The data of a recipe: interactions, tokenizer, histories, and what is recorded about them."""

import dataclasses
import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from ..data.candidates import popularity_candidates, uniform_candidates
from ..data.features import ItemFeatures
from ..data.formats import is_embedded
from ..data.interactions import load_interactions, rename_items
from ..data.item_tables import load_item_features, load_item_ids, load_titles
from ..data.tokenization import ItemTokenizer, extend_item_tokenizer, item_tokenizer
from ..data.values import format_time, time_unit, tomorrow
from ..evaluation.ranking import Sampled
from ..hub.checkpoint import fetch_checkpoint, stored_exclude_history
from ..hub.run_facts import FACTS_FILE, DataFacts, RunFacts
from ..models.registry import architecture_of
from ..training.settings import PREFIX_MASKS, SIZES, recommended_settings
from .options import RunArguments
from .own_code import find_configuration, find_split
from .recipe import Recipe

logger = logging.getLogger(__name__)

EMBEDDED_TERMS = (
    "MovieLens (GroupLens, University of Minnesota): no commercial use without permission, redistribution under the "
    "same terms, please cite Harper and Konstan, 2015, doi:10.1145/2827872."
)
WHOLE_HISTORY = 2**31 - 1  # longer than any history
PREFIX_ROWS = {"prefixes": True, **PREFIX_MASKS}
ROWS = (*PREFIX_ROWS, "window_step", "mask_probability")
"""Options of training rows and masks. They depend on each other."""
CHUNK = 1_000_000  # interactions that are hashed at a time


def prepare(
    recipe: Recipe, tokenizer: ItemTokenizer | None = None
) -> tuple[Recipe, Dataset, ItemTokenizer, DatasetDict]:
    """Read, filter, encode and split the data of a recipe; return recipe, interactions, tokenizer and histories.

    To evaluate a checkpoint, pass its tokenizer. With `continue_from`, the tokenizer of that checkpoint is extended.
    Otherwise a tokenizer is built from the interactions that `Split.past` returns (with `leave_one_out` the whole log),
    and `recommended_settings` chooses options that the recipe does not set.
    """
    run = recipe.run
    if not run.data:
        raise ValueError("The log is missing. Pass `--data ratings.csv`, or write `data: ratings.csv` in the recipe.")
    split, options = find_split(run.split), recipe.options("splitting")
    if unread := [name for name, value in options.items() if value is not None and name not in split.options]:
        own = ", ".join(f"`--{name}`" for name in split.options) or "none"
        raise ValueError(f"The split {run.split} has no option `--{unread[0]}`. Remove it. This split has {own}.")
    if run.popularity_candidates and run.uniform_candidates:
        raise ValueError("Use `--popularity_candidates` or `--uniform_candidates`, not both. Set one of them to 0.")
    recipe.split_options()  # before the log is read
    names = load_item_ids(run.item_ids) if run.item_ids else None
    interactions, new = _read_logs(recipe, names)
    if run.continue_from is not None and tokenizer is None:
        recipe, tokenizer = _continue(recipe, new, names)
    if tokenizer is None:
        length = run.max_length or find_configuration(run.architecture).max_position_embeddings
        past = split.past_of(interactions, options)
        if run.recommended_settings:
            recipe = _with_recommended_settings(recipe, past)
        features = _features(run, names)
        tokenizer = item_tokenizer(past, titles=_titles(run, names), features=features, max_length=length)
    histories = _split(recipe, interactions, tokenizer, run.max_length)
    for name in histories.keys() - {"train"}:
        if run.popularity_candidates:
            counts = np.bincount(tokenizer.encode_items(interactions), minlength=len(tokenizer))
            histories[name] = popularity_candidates(histories[name], counts, run.popularity_candidates)
        elif run.uniform_candidates:
            histories[name] = uniform_candidates(histories[name], len(tokenizer), run.uniform_candidates)
    sizes = ", ".join(f"{name} {rows.num_rows:,}" for name, rows in histories.items())
    logger.info("Rows of histories: %s.", sizes)
    return recipe, interactions, tokenizer, histories


def _with_recommended_settings(recipe: Recipe, interactions: Dataset) -> Recipe:
    """Return a recipe with the options that `recommended_settings` chooses and the recipe does not give; log them.

    Rows and masks depend on each other. If the recipe gives one of the options `ROWS` a value that is not the
    recommended one, none of the other `ROWS` is filled in. If it gives one of the `SIZES`, neither are the others.
    """
    configuration = find_configuration(recipe.run.architecture)
    objective = architecture_of(configuration()).objective
    prefixes = "prefixes" in find_split(recipe.run.split).options
    prefixes &= all(recipe.given[name] == PREFIX_ROWS.get(name) for name in ROWS if name in recipe.given)
    settings = recommended_settings(
        interactions, objective=objective, prefixes=prefixes, max_length=recipe.run.max_length
    )
    if recipe.given.keys() & SIZES.keys():
        for name in SIZES:
            settings.model.pop(name, None)
    softmax = recipe.given.get("loss", configuration.loss) == "softmax"
    if not softmax or recipe.given.get("exclude_history"):
        settings.model.pop("repeat_head", None)  # it needs this loss, and to recommend items of the history
    if not softmax or not recipe.run.initialize_items:
        settings.model.pop("num_followers", None)
    options = {name: getattr(settings, name) for name in ("splitting", "masking", "training")}
    if recipe.run.start_from is None:  # otherwise the checkpoint has its own
        options["model"] = settings.model
    filled = recipe.fill(options)
    if new := {name: value for name, value in filled.given.items() if name not in recipe.given}:
        words = " ".join(f"--{name} {value}" for name, value in new.items())
        text = "Recommended settings for this log (%s): %s. Pass an option to override its value."
        logger.info(text, settings.reason, words)
    return filled.fill({"run": {"recommended_settings": False}})  # a run from this recipe has the same options


def _read_logs(recipe: Recipe, names: dict[str, str] | None) -> tuple[Dataset, Dataset]:
    """Return all interactions of a recipe, and those of its log `data` alone, without the log `history`."""
    run = recipe.run
    if run.history and run.continue_from is None:
        raise ValueError("`--history` needs `--continue_from`. To train a new model, pass one log as `--data`.")
    read = [load_interactions(log, **recipe.options("reading")) for log in (run.history, run.data) if log]
    if names is not None:
        read = [rename_items(log, names) for log in read]
    *history, new = read
    if not history:
        if run.continue_from is not None:
            text = "Without `--history`, histories begin with %s. Pass the earlier interactions as `--history`."
            logger.warning(text, run.data)
        return new, new
    tables = [log.with_format("arrow")[:].select(["user", "item", "timestamp"]) for log in read]
    if not pc.any(pc.is_in(tables[1]["user"], value_set=tables[0]["user"].unique())).as_py():
        text = "None of the users of %s, such as %r, is in %s. Both need the same user IDs."
        logger.warning(text, run.data, tables[1]["user"][0].as_py(), run.history)
    last, first = pc.max(tables[0]["timestamp"]).as_py(), pc.min(tables[1]["timestamp"]).as_py()
    _check_times(run, run.history, last, first, earlier=first <= last, wrong="interactions that are in both logs")
    return Dataset(pa.concat_tables(tables, promote_options="permissive")), new


def _check_times(run: RunArguments, old: Any, last: float, first: float, earlier: bool, wrong: str) -> None:
    """Raise ValueError if the times of the new log, from `first` on, and of the `old` one, up to `last`, do not fit."""
    times = f"{run.data} begins at {format_time(first)}, but {old} ends at {format_time(last)}"
    if len({time_unit(first), time_unit(last)} - {None}) > 1:
        raise ValueError(f"{times}. Convert the times of both logs to the same unit.")
    if run.allow_earlier:
        return
    if last <= tomorrow() < first and time_unit(first) == "seconds":  # the next night would be before this one
        found = f"{run.data} begins at {format_time(first)}, which is in the future"
        raise ValueError(f"{found}. Fix its dates, or pass `--allow_earlier true`.")
    if not earlier:
        return
    solution = f"Remove {wrong}"
    if last > tomorrow() and time_unit(last) == "seconds":
        times += ", which is in the future"
        solution = f"Fix the dates in {old}"
        if old != run.history:  # the end of the log is in the run facts of the checkpoint
            solution = f"Train {run.continue_from} again with corrected dates"
    raise ValueError(f"{times}. {solution}, or pass `--allow_earlier true`.")


def _continue(recipe: Recipe, new: Dataset, names: dict[str, str] | None) -> tuple[Recipe, ItemTokenizer]:
    """Return the recipe of a run that continues a checkpoint with new interactions, and the extended tokenizer."""
    run = recipe.run
    folder = fetch_checkpoint(str(run.continue_from))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = new.with_format("arrow")[:]
    first = pc.min(table["timestamp"]).as_py()
    last = RunFacts.load(folder).data.last_time if (folder / FACTS_FILE).exists() else None
    if last is not None:
        log = f"the log of {run.continue_from}"
        _check_times(run, log, last, first, earlier=first < last, wrong=f"the rows before {format_time(last)}")
    if run.max_length not in (None, tokenizer.model_max_length):
        length = tokenizer.model_max_length
        raise ValueError(f"`--max_length` must be {length}, as in {run.continue_from}, found {run.max_length}.")
    titles = _titles(run, names)
    old = dict(zip(tokenizer.items.to_pylist(), tokenizer.titles or (), strict=False))
    same_title = [old[item] == title for item, title in (titles or {}).items() if old.get(item) is not None]
    known = _check_items(run, tokenizer, table["item"])
    if 2 * sum(same_title) < len(same_title):
        found = f"{same_title.count(False)} of {len(same_title)} items have another title than in {run.continue_from}"
        advice = "Use the item IDs of this checkpoint. If only the titles have changed, omit `--titles`."
        raise ValueError(f"{run.titles}: {found}. {advice}")
    features, ids = _features(run, names), table["item"].chunks
    if features is not None:
        if tokenizer.features is None:
            raise ValueError(f"{run.continue_from} was trained without features of items. Omit `--item_features`.")
        _report_cold_items(run, features.items, pa.chunked_array([tokenizer.items, *ids]))
        ids = [*ids, *features.items.chunks]
    elif tokenizer.features is not None and not known:
        text = "%s was trained with features of items. Without `--item_features`, new items start without features."
        logger.warning(text, run.continue_from)
    extended = extend_item_tokenizer(tokenizer, pa.chunked_array(ids, pa.string()), titles=titles)
    if features is not None:
        extended.features = tokenizer.features.extended(features)
    return recipe.fill({"splitting": {"since": first}}), extended


def _check_items(run: RunArguments, tokenizer: ItemTokenizer, items: pa.ChunkedArray) -> bool:
    """Return whether the checkpoint has all items of the new log. Warn if most items are new, or if some were removed.

    ValueError if the checkpoint has none of the items.
    """
    known = tokenizer.encode_items(items) != tokenizer.unk_token_id
    if not known.any():
        found = f"{run.data}: none of its item IDs, such as {items[0].as_py()!r}, is in {run.continue_from}"
        advice = "Use the IDs of this checkpoint. If only the titles are the same, pass `--titles`, and "
        raise ValueError(f"{found}. {advice}`--start_from` with `--match_items title` instead of `--continue_from`.")
    if 2 * known.sum() < len(known):
        text = "%s: %d of %d interactions have items that %s lacks, such as %r. If these are not new, check their IDs."
        new_item = items[int(known.argmin())].as_py()
        logger.warning(text, run.data, (~known).sum(), len(known), run.continue_from, new_item)
    if removed := pc.sum(pc.is_in(items, value_set=pa.array(tokenizer.removed, pa.string()))).as_py():
        text = (
            "%s: the items of %d of %d interactions were removed. Histories keep them, but they are not recommended. %s"
        )
        logger.warning(text, run.data, removed, len(known), "`hf-bert4rec items add` makes them available again.")
    return bool(known.all())


def _titles(run: RunArguments, names: dict[str, str] | None) -> dict[str, str] | None:
    """Return a dict from item ID to title, or None. With `item_ids`, the IDs of `titles` are renamed like the log."""
    titles = load_titles(run.titles, item=run.title_item, title=run.title_column) if run.titles else None
    if titles is None or names is None:
        return titles
    if untitled := set(names) - set(titles):  # otherwise catalog numbers could be taken for IDs of the log
        found = f"found no title for {min(untitled)!r} of {run.item_ids} (IDs without a title: {len(untitled)})"
        advice = "`--titles` needs the old IDs, which are in the first column of `--item_ids`."
        raise ValueError(f"{run.titles}: {found}. {advice}")
    return {names[item]: title for item, title in titles.items() if item in names}


def _report_cold_items(run: RunArguments, described: pa.ChunkedArray, known: pa.ChunkedArray) -> None:
    """Log how many items with features are new and have no interactions; warn if all of them are."""
    cold = described.filter(pc.invert(pc.is_in(described, value_set=known.combine_chunks())))
    if len(cold):
        text = "%s: %d of %d items, such as %r, are neither in %s nor in %s. They are added to the catalog permanently."
        values = run.item_features, len(cold), len(described), cold[0].as_py(), run.continue_from, run.data
        if len(cold) < len(described):
            logger.info(text, *values)
        else:
            logger.warning(f"{text} If they are not new, check their IDs.", *values)


def _features(run: RunArguments, names: dict[str, str] | None) -> ItemFeatures | None:
    """Return the features of items, encoded as in `start_from` if it has features; IDs are renamed as in `_titles`."""
    if run.item_features is None:
        return None
    old = None if run.start_from is None else AutoTokenizer.from_pretrained(fetch_checkpoint(run.start_from)).features
    features = load_item_features(
        run.item_features, item=run.title_item, text=run.feature_text or (), encoder=run.encoder, like=old
    )
    if names is None:
        return features
    ids = pa.array([names.get(item) for item in features.items.to_pylist()], pa.string())
    return dataclasses.replace(features, table=features.table.set_column(0, "item", ids).filter(ids.is_valid()))


def whole_histories(recipe: Recipe, interactions: Dataset, tokenizer: ItemTokenizer) -> Dataset:
    """Return the training split with one row per user, of any length. Baselines are fitted to these rows."""
    return _split(recipe, interactions, tokenizer, WHOLE_HISTORY, prefixes=False, replay=float("inf"))["train"]


def validation_histories(recipe: Recipe, interactions: Dataset, tokenizer: ItemTokenizer) -> Dataset:
    """Return the validation split for a model with the items of `tokenizer`; other targets count as missed."""
    return _split(recipe, interactions, tokenizer, recipe.run.max_length, prefixes=False, replay=0.0)["validation"]


def _split(
    recipe: Recipe, interactions: Dataset, tokenizer: ItemTokenizer, length: int | None, **changes: Any
) -> DatasetDict:
    options = recipe.split_options()
    options |= {name: value for name, value in changes.items() if name in options}
    return find_split(recipe.run.split).function(interactions, tokenizer, max_length=length, **options)


def protocol(recipe: Recipe, items: int, exclude_history: bool | None = None) -> tuple[str, str | None]:
    """Describe how a model is evaluated: among all `items` items, and among candidates (None without candidates).

    `exclude_history` is the setting of the model. Default: the setting of the recipe.
    """
    split = find_split(recipe.run.split).describe(recipe.options("splitting"))
    number = recipe.run.popularity_candidates or recipe.run.uniform_candidates
    drawn = "uniformly" if recipe.run.uniform_candidates else "by their popularity in the whole log"
    excluded = excludes_history(recipe) if exclude_history is None else exclude_history
    return (
        f"{split}, ranked among all {items:,} items, history {'excluded' if excluded else 'not excluded'}",
        f"{split}, ranked among {number} items drawn for each user {drawn}, history excluded" if number else None,
    )


def excludes_history(recipe: Recipe) -> bool:
    """Return whether a model of the recipe excludes items of the history from rankings."""
    if recipe.run.start_from is not None and "exclude_history" not in recipe.given:
        return stored_exclude_history(fetch_checkpoint(recipe.run.start_from))
    return recipe.given.get("exclude_history", find_configuration(recipe.run.architecture).exclude_history)


def sampled_by(recipe: Recipe) -> Sampled:
    """Return how the candidates of a recipe are drawn."""
    return "uniform_sampled" if recipe.run.uniform_candidates else "popularity_sampled"


def describe_data(recipe: Recipe, interactions: Dataset) -> DataFacts:
    """Return name, size and checksum (SHA-256 of the interactions as CSV) of the data, and its terms of use."""
    table, digest = interactions.with_format("arrow")[:], hashlib.sha256()
    for start in range(0, table.num_rows, CHUNK):
        lines = io.BytesIO()
        part = table.select(["user", "item", "timestamp"]).slice(start, CHUNK)
        pyarrow.csv.write_csv(part, lines, pyarrow.csv.WriteOptions(include_header=start == 0))
        digest.update(lines.getbuffer())
    return DataFacts(
        name="-and-".join(Path(log).name for log in (recipe.run.history, recipe.run.data) if log),
        interactions=table.num_rows,
        users=len(table["user"].unique()),
        items=len(table["item"].unique()),
        sha256=digest.hexdigest(),
        last_time=pc.max(table["timestamp"]).as_py(),
        terms=recipe.run.terms or (EMBEDDED_TERMS if is_embedded(recipe.run.data) else None),
    )
