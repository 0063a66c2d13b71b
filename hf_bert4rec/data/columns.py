"""Find the column of each role (user, item, timestamp ...) in a log, by usual names or by the first rows."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from .ids import ONE_PER_ROW
from .sources import RawLog, spell

Column = str | int | None
Rows = Sequence[Sequence[str]]

KEY = "(id|no|nr|num|number|nummer|code|key|idx|index|hash|uuid)"
PERSON = (
    "(user|customer|client|buyer|member|visitor|shopper|reviewer|account|person|profile|player|reader|listener|household|"
    "kunden?|käufer|(be)?nutzer)"
)
GOODS = "(item|product|article|artikel|produkt)"
WORK = "(movie|film|book|song|track|game|app|video|recipe|anime|news|course|show|episode|podcast|beer|joke|food)"
PLACE = "(business|venue|restaurant|hotel|poi|place|artist|album|listing|offer|ad|content|document|material|stock)"
EVENT = (
    "(event|order|purchase|sales?|transaction|invoice|payment|review|rating|click|view|visit|session|action|activity|"
    "interaction|checkin|watch|play|listen|booking|request|create?|creation|record|server|added|placed){,2}"
)
DURATION = "(listen|play|watch|session|dwell|stay)time(?!stamp)"  # not a time of the interaction
DATE = f"{EVENT}(ed)?date|tdat|date(added|created|ordered)|dt|(bestell|kauf|auftrags|rechnungs)?datum"
TIME = f"(?!.*{DURATION}){EVENT}time|(bestell|kauf|uhr)?zeit"
MOMENT = f"{EVENT}(timestamp|datetime|ts|epoch)|unixtime|{EVENT}e?d?at|boughtat|soldat|(bestell)?zeit(punkt|stempel)"
MORE_DATES = f"dateadd|{EVENT}dt"
VISIT = f"(session|visit|basket){KEY}?"
DOUBTFUL_NAMES = {  # names that are used with a warning, because they often mean something else
    "user": VISIT,
    "item": f"sid|document{KEY}",
    "timestamp": f"(view|visit|action|activity)time|{EVENT}timems",  # or a duration
}
NAMES = {  # role -> patterns, the best fit first, for names in lower case without blanks and punctuation
    "user": ("user", f"(id)?{PERSON}{KEY}?|uid", f"{PERSON}name", f"{PERSON}?email|userpseudoid|anonymousid", VISIT),
    "item": ("item|parentasin", f"(id)?{GOODS}{KEY}?|{WORK}{KEY}|asin|sku|isbn|iid|ean|gtin", f"{PLACE}{KEY}", "sid"),
    "rating": ("rating", f"({GOODS}|{WORK}|review|user|star)?(rating|score|stars?|overall)"),
    "timestamp": ("timestamp|unixreviewtime", MOMENT, f"{EVENT}(time|timestamp|ts)ms", DATE, MORE_DATES, TIME),
    "title": ("title|titel", f"({GOODS}|{WORK})tit(le|el)", f"({GOODS}|{WORK})?(name|bezeichnung)", "description"),
}
SEQUENCES = f"({GOODS}|{WORK}|asin|sku){KEY}?s?(list|seq|sequence|history)"
SEPARATORS = (";", "\t", "|", ",", "::")  # found in the first line of a file
MORE_SEPARATORS = (" ", ":")  # advised only; ":" last, because RecBole has it in names (user_id:token)
NUMBER_OR_DATE = re.compile(r"\s*-?\d[\d.:TZ /+-]*")
CLOCK = re.compile(r"(^|\s)\d\d?[/:]\d\d?([/:]\d|\s|$)")  # dates and times of other forms
DAY = re.compile(r"\s*(\d{4}[-/.]\d|\d\d?\.\d\d?\.\d{4})")
ASIN, AMAZON_USER = re.compile(r"B0[0-9A-Z]{8}|[0-9]{9}[0-9X]"), re.compile(r"A[0-9A-Z]{7,}")


def find_columns(log: RawLog, wanted: Mapping[str, Column], needed: Mapping[str, str]) -> dict[str, int]:
    """Return the position of the column of each role.

    `wanted` maps each role to the column that the user named, or to None. In this case the column is found by its name,
    values or type. `needed` maps each role that must have a column to its option of the command line, or to "" if it
    has none. The role "time of day" is added for a separate column of times, if the timestamp is a column of dates.
    ValueError if the column of a needed role or a named column is missing, several columns fit a role, two roles of a
    log have the same column, or cells contain several values.
    """
    guessed = guess_roles(log.first_rows) if "user" in wanted else {}
    found = {role: place for role, place in guessed.items() if role in wanted}
    for role, name in wanted.items():
        found |= _find(log, role, name, NAMES[role], needed.get(role, role))
    if "timestamp" in wanted and "timestamp" not in found:
        found |= _only(log, "timestamp", [place for place in log.dates if place not in found.values()], "timestamp")
    place = found.get("timestamp")
    if place is not None and wanted["timestamp"] is None and _fits(log.columns[place], f"{DATE}|{MORE_DATES}"):
        for time in _find(log, "timestamp", None, [TIME], "timestamp").values():
            found["time of day"] = time
    if missing := [role for role in needed if role not in found]:
        advice = _advice(log, missing[0], needed[missing[0]], "user" in wanted)
        raise ValueError(f"{log.name}: expected a column for the {missing[0]}, found {log}. {advice}")
    if "user" in found:
        _check_roles(log, wanted, found)
    return found


def _check_roles(log: RawLog, wanted: Mapping[str, Column], found: Mapping[str, int]) -> None:
    """Raise ValueError if a column of a log has several values per cell, or is the column of two roles."""
    sequences = [name for name in log.columns if wanted["item"] is None and _fits(name, SEQUENCES)]
    sequences += [log.columns[place] for place in found.values() if log.columns[place].endswith("_seq")]
    if sequences:
        cells = f"the cells of the column {sequences[0]!r} seem to contain several values, according to its name"
        advice = "If each cell has one value, rename the column."
        if wanted["item"] is None:
            advice += f" If another column has the item of the row, name it: {spell('item')}."
        raise ValueError(f"{log.name}: {cells}. {ONE_PER_ROW} {advice}")
    for one, other in combinations([role for role in wanted if role in found], 2):
        if found[one] == found[other]:
            both = f"{one} and {other} are both the column {log.columns[found[one]]!r}"
            raise ValueError(f"{log.name}: {both}. Name another column, such as {spell(other)}.")


def _advice(log: RawLog, role: str, command: str, interactions: bool) -> str:
    if not log.columns:
        return "Check the source."
    advice = f"Name the column, by its name or position (from 0): {spell(role, command=command)}."
    advice += " For a log without ratings, omit `min_rating`." * (role == "rating")
    if log.first_rows and interactions:
        sequences = f"use {spell('format', 'sequences')}, and name the separator unless it is whitespace"
        advice += f" Name the column of times too, if there is one. For lines of 'user item item …' {sequences}."
    return or_separator(log, advice)


def or_separator(log: RawLog, advice: str) -> str:
    """Return advice about the separator for a table whose only column may be several ones; otherwise `advice`."""
    if len(log.columns) != 1:
        return advice
    found = next((separator for separator in (*SEPARATORS, *MORE_SEPARATORS) if separator in log.columns[0]), None)
    if log.file is None:
        solution = f"Read the table with its separator, such as `pandas.read_csv(path, sep={found!r})`."
        return solution if found else advice
    example = log.file.spell("separator", found or "...")
    more = f"{advice} If there are more columns, name their separator: {example}."
    return f"Name the separator: {example}." if found else more


def _find(log: RawLog, role: str, name: Column, patterns: Iterable[str], command: str) -> dict[str, int]:
    """Return a dict from role to the position of the named or best fitting column; {} if no column fits."""
    if name is None:
        fits = ([i for i, column in enumerate(log.columns) if _fits(column, pattern)] for pattern in patterns)
        places = next(filter(None, fits), [])
    else:
        if str(name) in log.columns:  # also the label 1 of a data frame
            name = str(name)
        elif str(name).isdecimal():  # from a command line
            name = int(name)
        places = [place for place, column in enumerate(log.columns) if name in (place, column)]
        if not places:
            advice = or_separator(log, "Name one of these, or its position (from 0).")
            raise ValueError(f"{log.name}: expected a column {name!r} for the {role}, found {log}. {advice}")
    return _only(log, role, places, command)


def _only(log: RawLog, role: str, places: list[int], command: str) -> dict[str, int]:
    """Return a dict from role to the only place; {} without places. Raise ValueError for several places."""
    if len(places) > 1:
        shown = " and ".join(f"{log.columns[place]!r} (position {place})" for place in places)
        choice = places[0] if len({log.columns[place] for place in places}) == 1 else log.columns[places[0]]
        example = spell(role, choice, command)
        raise ValueError(f"{log.name}: {shown} fit the {role} equally well. Name one of them: {example}.")
    return {role: places[0]} if places else {}


def _fits(name: str, pattern: str) -> bool:
    """Return whether a name matches, ignoring case, whitespace, punctuation and RecBole's types (user_id:token)."""
    return bool(re.fullmatch(pattern, re.sub(r"[\W_]", "", name.partition(":")[0]).lower()))


def is_usual(name: Any, *roles: str) -> bool:
    """Return whether a column is found for one of the roles (default: any role) because of its name."""
    return any(_fits(str(name), pattern) for role in roles or NAMES for pattern in NAMES[role])


def is_doubtful(name: Any, role: str) -> bool:
    """Return whether a column that is found for a role because of its name may be something else."""
    return role in DOUBTFUL_NAMES and _fits(str(name), DOUBTFUL_NAMES[role])


def is_header(rows: Rows) -> bool:
    """Return whether the first row is a header: it has no number, and has a usual name or is above numbers or dates."""
    first, *others = rows
    if first[0] == "" and is_range(first[1:]):  # as pandas writes columns without names after the index
        return True
    if any(map(NUMBER_OR_DATE.fullmatch, first)):
        return False
    columns = [list(filter(str.strip, column)) for column in _columns(others, len(first))]
    numbers = any(column and all(map(NUMBER_OR_DATE.fullmatch, column)) for column in columns)
    return (len(others) > 2 and numbers) or any(map(is_usual, first))


def is_range(cells: Sequence[str]) -> bool:
    """Return whether cells are 0, 1, 2 and so on, as pandas writes columns without names."""
    return len(cells) > 1 and list(cells) == [str(place) for place in range(len(cells))]


def guess_roles(rows: Rows) -> dict[str, int]:
    """Return a dict from role to column of a file without a header: `user item [rating timestamp]`, as in MovieLens.

    Rating and timestamp may be swapped. User and item are swapped if their values look like IDs of Amazon. The dict
    is empty for other columns. It is also empty if one of the first two columns may be the time, because then their
    order is unknown.
    """
    columns = _columns(rows, len(rows[0])) if rows else []
    if len(columns) not in (2, 4):
        return {}
    timed = len(columns) == 2 or any(_most(_is_recent, column) for column in columns[2:])
    if any(_most(DAY.match if timed else _is_recent, column) for column in columns[:2]):
        return {}
    amazon = _most(ASIN.fullmatch, columns[0]) and _most(AMAZON_USER.fullmatch, columns[1])
    roles = ["item", "user"] if amazon else ["user", "item"]
    kinds = {"timestamp": _is_time, "rating": lambda cell: -100 <= _number(cell) <= 100}
    for column in columns[2:]:
        roles.append(next((kind for kind, fits in kinds.items() if _most(fits, column)), ""))
    return {} if "" in roles or len(set(roles)) < len(roles) else {role: i for i, role in enumerate(roles)}


def are_sequences(rows: Rows) -> bool:
    """Return whether rows are `user item item …`: their lengths vary, or all users differ and no column has times."""
    widths = Counter(map(len, rows))
    width, amount = widths.most_common(1)[0]
    if max(widths) < 4 or 2 * amount <= len(rows):
        return max(widths) >= 4
    others = len({row[0] for row in rows}) == len(rows) == amount
    columns = _columns(rows, width)
    timed = any(_most(_is_time, column) for column in columns) or any(_most(CLOCK.search, it) for it in columns[1:])
    return others and not is_header(rows) and not timed


def _columns(rows: Rows, width: int) -> list[tuple[str, ...]]:
    return list(zip(*(row for row in rows if len(row) == width), strict=True))


def _most(fits: Callable[[str], object], cells: Sequence[str]) -> bool:
    return 2 * sum(bool(fits(cell)) for cell in cells) >= len(cells)


def _is_time(cell: str) -> bool:
    """Return whether a cell is a date, or a Unix time in s, ms, us or ns between 1973 and 2038."""
    return bool(DAY.match(cell)) or any(1e8 <= _number(cell) / unit < 2**31 for unit in (1, 1e3, 1e6, 1e9))


def _is_recent(cell: str) -> bool:
    """Return whether a cell is a date, or a Unix time in s from 1995 on or in ms from 2001 on without leading zero."""
    number = _number(cell) if not cell.strip().startswith("0") else 0  # many ISBNs begin with a zero
    return bool(DAY.match(cell)) or 8e8 <= number < 2**31 or 1e12 <= number < 2**31 * 1e3


def _number(cell: str) -> float:
    return float(cell) if re.fullmatch(r" *-?\d+(\.\d*)? *", cell) else float("nan")
