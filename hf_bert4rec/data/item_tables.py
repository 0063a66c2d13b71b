"""Read tables with one row per item: titles, new IDs, features, and items to add to a catalog."""

import logging
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .arguments import read_list
from .columns import DAY, Column, find_columns, or_separator
from .features import BYTES, MOST_CATEGORIES, MOST_INTERVALS, ItemFeatures, check_features
from .formats import open_log
from .ids import Values, as_ids
from .sources import RawLog, library_errors, spell
from .values import NUMBER, as_numbers, as_text, check_ids

logger = logging.getLogger(__name__)

SEPARATOR = "|"  # between the categories of a text cell, as in the genres of MovieLens
BINS = np.arange(1, MOST_INTERVALS) / MOST_INTERVALS  # quantiles between the intervals of a number
MAX_LENGTH_RATIO = 5  # of the mean lengths of new vectors and of those in the training; beyond it there is a warning
LIKE = "like"  # column of new items with the IDs of known ones


def load_titles(
    source: Any,
    *,
    format: str | None = None,  # noqa: A002
    item: Column = None,
    title: Column = None,
    separator: str | None = None,
    encoding: str | None = None,
) -> dict[str, str]:
    """Return a dict from raw item ID to title, read from the same kinds of source as `load_interactions`.

    `item` and `title` name columns, by their name or position (from 0). By default they are found by usual names. In a
    file without a header, the first column is the item and the second the title. Rows without an ID or title are
    skipped. Of several titles of an item, the last one is used. The other options are as for `load_interactions`.

    Raises:
        FileNotFoundError: There is no such file, or the folder has no file of MovieLens.
        ValueError: An option is invalid, the source cannot be read, or a column is missing or ambiguous.
    """
    log = open_log(source, "titles", format, separator, encoding, [item, title])
    with library_errors(log.name):
        if log.first_rows and len(log.columns) > 1:
            item, title = (0 if item is None else item), (1 if title is None else title)
        found = find_columns(log, {"item": item, "title": title}, {"item": "title_item", "title": "title_column"})
        return dict(_read_pairs(log, found))


def load_item_ids(source: Any) -> dict[str, str]:
    """Return a dict from old to new item ID, the first two columns of a source such as `load_titles` reads.

    ValueError if the source has one column only, or an old ID has two different new IDs. Errors of reading are those of
    `load_titles`.
    """
    log = open_log(source, "titles")
    if len(log.columns) < 2:
        advice = "Pass a table with two columns, in CSV separated by commas."
        raise ValueError(f"{log.name}: expected columns with the old and the new item ID, found {log}. {advice}")
    names: dict[str, str] = {}
    with library_errors(log.name):
        for old, new in _read_pairs(log, {"item": 0, "new item ID": 1}):
            if names.setdefault(old, new) != new:
                found = f"found {names[old]!r} and {new!r} for {old!r}"
                advice = "The first column must have the old IDs. If it does, remove one of the rows."
                raise ValueError(f"{log.name}: expected one new ID per item, {found}. {advice}")
    return names


def _read_pairs(log: RawLog, found: dict[str, int]) -> list[tuple[str, str]]:
    """Return the texts of the two columns of roles, for the rows with both."""
    columns = zip(found, log.read(list(found.values())), strict=True)
    keys, values = (as_ids(column, role, log.locate).to_pylist() for role, column in columns)
    return [(key, value) for key, value in zip(keys, values, strict=True) if key is not None and value is not None]


def load_item_features(
    source: Any,
    *,
    item: Column = None,
    text: Sequence[str] = (),
    encoder: str | None = None,
    like: ItemFeatures | None = None,
    format: str | None = None,  # noqa: A002
    separator: str | None = None,
    encoding: str | None = None,
) -> ItemFeatures:
    """Read the features of items from a table with one row per item.

    The kind of a column follows from its values. Numbers stay numbers, and lists of numbers are vectors. Text (split at
    `|`), lists of text, booleans and dates are categories. Of the categories that several items share, the 1,000 most
    frequent ones of a column are used. The column is ignored if fewer than half of its items have one of them, unless
    it is named in `text`. Values may be missing, but not in vectors. An item is ignored if none of its values is used.

    Args:
        source: A file, a data frame, or anything else that `load_interactions` reads.
        item: Column of the item: a name, or a position from 0. Default: a column with a usual name.
        text: Columns that become vectors with `encoder`, such as titles and descriptions.
        encoder: A model of sentence-transformers: Hub ID or folder (`pip install 'hf-bert4rec[features]'`).
        like: Features of other items. The table needs the same columns, which are encoded in the same way. Other
            columns are ignored. If there is text, pass the same `encoder`.
        format: As for `load_interactions`, like `separator` and `encoding`.

    A column `like` is not read, because tables of new items have the IDs of similar items in it (see `add_items`).

    Raises:
        FileNotFoundError: There is no such file, or the folder has no file of MovieLens.
        ValueError: An item ID is missing or repeated, most but not all values of a column are numbers, vectors have
            different widths or are not finite, the encoder or a column of `text` or `like` is missing, no column can be
            used, or the features have more than 25,000 bytes per item on average.
    """
    check_features("like", like)
    known = {key: {"kind": "text"} for key in read_list(text, "text")} if like is None else like.columns
    log = open_log(source, "titles", format, separator, encoding, [item, *known])
    with library_errors(log.name):
        place, items = read_items(log, item, "title_item")
    return _read_features(log, place, items, known, encoder, others=like is None)


def _read_features(
    log: RawLog, place: int, items: pa.ChunkedArray, known: dict[str, dict[str, Any]], encoder: str | None, others: bool
) -> ItemFeatures:
    """Return the features of `items`, whose column is at `place`; see `load_item_features`.

    `known` has the encodings that are given, by column. `others` is whether other columns are used, too.
    """
    with library_errors(log.name):
        if missing := [name for name in known if name not in log.columns]:
            origin, advice = "named in `text` (command line: `--feature_text`)", "Add or rename it."
            if not others:
                origin = f"as in the training, whose features are {', '.join(known)}"
                advice += " Only `add_items` (command line: `items add`) also takes a table with none of them."
            raise ValueError(f"{log.name}: expected a column {missing[0]!r}, {origin}, found {log}. {advice}")
        names = [name for name in log.columns if name != LIKE and log.columns.index(name) != place]
        names = names if others else list(known)
        _, *values = log.read([place, *map(log.columns.index, names)])
        read, columns = {"item": items}, {}
        for name, column in zip(names, values, strict=True):
            if (found := _read_column(name, column, log, known.get(name, {}), encoder)) is not None:
                if name in read:
                    expected = f"expected different names of features, found {name!r} twice"
                    advice = "Rename or remove one of them. The name 'item' is reserved for the IDs."
                    raise ValueError(f"{log.name}: {expected}. {advice}")
                read[name], columns[name] = found
        if not columns:
            advice = or_separator(log, "Add numbers or categories.")
            raise ValueError(f"{log.name}: no column can be used as a feature, found {log}. {advice}")
        features = ItemFeatures(pa.table(read), columns)
        described = (features.vectors(items)[:, 1:] != 0).any(axis=1)
    features = ItemFeatures(features.table.filter(pa.array(described)), columns)
    kinds = ", ".join(f"{name} ({how['kind']})" for name, how in columns.items())
    logger.info("%s: features of %d of %d items: %s.", log.name, len(features.table), len(items), kinds)
    mean = features.table.nbytes // max(1, len(features.table))
    if mean > BYTES // 2:  # `load` would reject the file
        largest = max(columns, key=lambda name: features.table[name].nbytes)
        expected = f"expected at most {BYTES // 2:,} bytes of features per item on average, found {mean:,}"
        raise ValueError(f"{log.name}: {expected}. Shorten values of the column {largest!r}, or remove this column.")
    return features


@dataclass(frozen=True)
class NewItems:
    """Items to add to a catalog."""

    items: list[str]  # raw IDs
    titles: dict[str, str]  # ID -> title, for items with a title
    likes: dict[str, list[str]]  # ID -> IDs of similar known items, for items with a value in the column `LIKE`
    features: ItemFeatures | None  # encoded like those of the catalog; None if the table has no such columns


def load_new_items(
    source: Any,
    known: ItemFeatures | None,
    *,
    item: Column = None,
    title: Column = None,
    encoder: str | None = None,
    **form: Any,
) -> NewItems:
    """Read items to add, with optional columns `title` and `like`, and the columns of `known`, the catalog's features.

    The options are those of `load_item_features`, in `form` its `format`, `separator` and `encoding`. The IDs of `like`
    are a list, or text separated by `|`.

    Raises:
        ValueError: As for `load_item_features`. The table has some of the feature columns, but not all.
    """
    own = {} if known is None else known.columns
    log = open_log(source, "titles", columns=[item, title, *own], **form)
    with library_errors(log.name):
        place, items = read_items(log, item, "item")
        used = {"item": place} | find_columns(log, {"title": title}, needed={})
        if LIKE in log.columns:
            used[LIKE] = log.columns.index(LIKE)
        columns = dict(zip(used, log.read(list(used.values())), strict=True))
        ids = items.to_pylist()
        titles = as_ids(columns["title"], "title", log.locate).to_pylist() if "title" in used else []
        likes = _as_categories(_cells(columns[LIKE])) if LIKE in used else []
    others = [name for place, name in enumerate(log.columns) if place not in used.values() and name not in own]
    if others:
        names = ", ".join(map(repr, others))
        logger.info("%s: columns that are not features of the checkpoint are not used: %s.", log.name, names)
    described = not own.keys().isdisjoint(log.columns)
    return NewItems(
        ids,
        {item: title for item, title in zip(ids, titles, strict=False) if title is not None},
        {item: others for item, others in zip(ids, likes, strict=False) if others},
        _read_features(log, place, items, own, encoder, others=False) if described else None,
    )


def read_items(log: RawLog, item: Column, command: str) -> tuple[int, pa.ChunkedArray]:
    """Return position and IDs of the item column, whose option is `command`; ValueError for missing or repeated IDs."""
    place = find_columns(log, {"item": item}, needed={"item": command})["item"]
    items = as_ids(log.read([place])[0], "item", log.locate)
    if items.null_count:
        row = items.is_null().index(True).as_py()
        raise ValueError(f"{log.locate(row)}: the item ID is missing. Fix or remove this row.")
    counts = pc.value_counts(items)
    check_ids(counts.field("values"), counts.field("counts").to_numpy(), "item", log.name)
    if len(counts) < len(items):
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        shown = ", ".join(map(repr, twice[:3].to_pylist()))
        raise ValueError(f"{log.name}: expected one row per item, found several for {shown}. Keep one row of each.")
    return place, items


def _read_column(
    name: str, values: Values, log: RawLog, known: dict[str, Any], encoder: str | None
) -> tuple[pa.Array, dict[str, Any]] | None:
    """Return the values as they are stored, and their encoding; None if the column is not used."""
    cells = _cells(values)
    kind = known.get("kind") or _kind(values, cells)
    if kind in ("vector", "text"):
        used = known.get("encoder", encoder)
        if kind == "text" and (encoder is None or used != encoder):  # a checkpoint must not choose what is loaded
            found = "" if encoder is None else f", the same as in training, found {encoder!r}"
            needed = f"the text of {name!r} needs an encoder of sentence-transformers{found}"
            raise ValueError(f"{log.name}: {needed}. Pass {spell('encoder', used or '...')}.")
        rows = _embed(as_text(values), log, encoder) if kind == "text" else _as_vectors(name, cells, log)
        width, scale = rows.shape[1], float(1 / max(np.linalg.norm(rows, axis=1).mean(), 1e-9))
        how = {"kind": kind, "width": width, "scale": scale} | known
        if width != how["width"]:
            found = f"found {width}. Compute the vectors as for the training."
            raise ValueError(f"{log.name}: expected vectors of {how['width']} numbers in the column {name!r}, {found}")
        _check_length(name, rows, known, log)
        stored = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), width)
        return stored, how | ({"encoder": encoder} if kind == "text" else {})
    if kind == "number":
        numbers = pc.cast(as_numbers(values, name, log, np.ones(len(values), bool)), pa.float64())
        given = numbers.drop_null()
        edges = np.unique(np.quantile(given, BINS)).tolist() if len(given) else []
        return numbers, known or {"kind": kind, "edges": edges}
    _check_text(name, cells, log)
    categories = _as_categories(cells)
    if not known:
        if not any(categories):
            logger.info("%s: the column %r has no values, so it is not used.", log.name, name)
            return None
        first = str(next(filter(_given, cells)))
        counts = Counter(value for row in categories for value in row)  # in the order of the table
        shared = [value for value, count in counts.most_common(MOST_CATEGORIES) if count > 1]
        owners = sum(not set(shared).isdisjoint(row) for row in categories)
        if 2 * owners < sum(map(bool, categories)) or not shared:
            reason = f"fewer than half of its items share one of the {MOST_CATEGORIES:,} most frequent values"
            options = f"`--feature_text {shlex.quote(name)}` and `--encoder`"
            solution = f"To use text such as titles, pass `text={[name]!r}` and `encoder` (command line: {options})"
            dates = "To use dates, convert them to numbers"
            logger.info("%s: the column %r is not used, because %s. %s. %s.", log.name, name, reason, solution, dates)
            return None
        if what := "dates" if DAY.match(first) else "booleans" if first.lower() in ("true", "false") else "":
            logger.info("%s: the %s in the column %r are read as categories, without an order.", log.name, what, name)
        known = {"kind": kind, "values": shared}
    elif (given := {value for row in categories for value in row}) and given.isdisjoint(known["values"]):
        text = "%s: none of the values of the column %r, such as %r, is in the features of the training. Check them."
        logger.warning(text, log.name, name, min(given))
    return pa.array(categories, pa.list_(pa.string())), known


def _check_length(name: str, rows: np.ndarray, known: dict[str, Any], log: RawLog) -> None:
    """Warn if vectors are on average far longer or shorter than those of the training, whose encoding is `known`."""
    given = rows[rows.any(axis=1)]  # rows of zeros are items without a vector
    if known.get("kind") != "vector" or not len(given):  # texts have the encoder of the training
        return
    ratio = float(np.linalg.norm(given, axis=1).mean() * known["scale"])
    if not 1 / MAX_LENGTH_RATIO <= ratio <= MAX_LENGTH_RATIO:
        text = "%s: the vectors in the column %r are on average %.2g times as long as in the training. %s"
        advice = "Items with too long vectors are recommended too often. Compute the vectors as for the training."
        logger.warning(text, log.name, name, ratio, advice)


def _check_text(name: str, cells: list[Any], log: RawLog) -> None:
    """Warn if most cells are lists or decimal numbers that were written as text."""
    for pattern, kind, solution in (
        (r"\s*\[.*\]\s*", "a list", "map(ast.literal_eval)"),
        (r"\s*-?\d+,\d+\s*", "a number", "str.replace(',', '.').astype(float)"),
    ):
        found = [cell for cell in cells if isinstance(cell, str) and re.fullmatch(pattern, cell)]
        if 2 * len(found) > len(cells):
            text = "%s: text such as %s in the column %r is not read as %s. Convert it (pandas: `frame[%r].%s`)."
            logger.warning(text, log.name, f"{found[0]!r:.80}", name, kind, name, solution)


def _cells(values: Values) -> list[Any]:
    if not isinstance(values, list) and "binary" in str(values.type):
        values = as_text(values)
    return values if isinstance(values, list) else values.to_pylist()


def _kind(values: Values, cells: list[Any]) -> str:
    lists = (cell for cell in cells if isinstance(cell, Sequence | np.ndarray) and not isinstance(cell, str))
    if (first := next(filter(len, lists), None)) is not None:
        return "categories" if any(isinstance(it, str | dict | list) for it in first) else "vector"
    distinct = [value for value in pc.unique(as_text(values)).to_pylist() if value is not None]
    if 10 * sum(SEPARATOR in value for value in distinct) > len(distinct):
        return "categories"
    numbers = sum(bool(NUMBER.fullmatch(value)) for value in distinct)
    return "number" if distinct and 2 * numbers >= len(distinct) else "categories"


def _given(value: Any) -> bool:
    return value is not None and value == value  # NaN is not equal to itself


def _as_categories(cells: list[Any]) -> list[list[str]]:
    rows = []
    for cell in cells:
        found = cell.split(SEPARATOR) if isinstance(cell, str) else cell
        several = found if isinstance(found, Sequence | np.ndarray) else [found]
        texts = (str(int(it) if isinstance(it, float) and it.is_integer() else it) for it in several if _given(it))
        rows.append(distinct_texts(texts))
    return rows


def distinct_texts(texts: Iterable[str]) -> list[str]:
    """Return the distinct texts that are not empty, without surrounding whitespace."""
    return [text for text in dict.fromkeys(map(str.strip, texts)) if text]


def _as_vectors(name: str, rows: list[Any], log: RawLog) -> np.ndarray:
    widths = [len(row) if isinstance(row, Sequence | np.ndarray) and not isinstance(row, str) else 0 for row in rows]
    usual = Counter(filter(None, widths)).most_common(1)[0][0] if any(widths) else "several"
    for row, width in enumerate(widths):
        if width != usual:
            found = f"found {width or repr(rows[row])!s:.80}. Fix or remove this row."
            found += " Convert text to lists, or use JSON lines." * isinstance(rows[row], str)
            raise ValueError(f"{log.locate(row)}: expected a list of {usual} numbers in the column {name!r}, {found}")
    with np.errstate(over="ignore"):  # becomes infinity
        vectors = np.array(rows, np.float32)
    if (bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))).size:
        found = f"found NaN, infinity or a number above {np.finfo(np.float32).max:.1e}. Fix or remove this row."
        raise ValueError(f"{log.locate(int(bad[0]))}: expected finite numbers in the column {name!r}, {found}")
    return vectors


def _embed(texts: pa.ChunkedArray, log: RawLog, encoder: str | None) -> np.ndarray:
    advice = "Run `pip install 'hf-bert4rec[features]'`, and check the name. Pickles and custom code are not loaded."
    with library_errors(f"{log.name}, encoder {encoder!r}", advice):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(encoder, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    bar = sys.stderr.isatty()  # not in a log file
    vectors = np.array(model.encode(pc.fill_null(texts, "").to_pylist(), show_progress_bar=bar), np.float32)
    vectors[np.asarray(texts.is_null())] = 0  # missing text has no meaning
    return vectors
