"""Read what users pass to the pipeline: histories, lists of items and options."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..data.arguments import check_bool, check_count, is_collection, read_list

ITEM_LISTS = {"allow", "deny"}


def read_histories(values: Any) -> list[list[Any]]:
    """Return one list of IDs per history, from lists, iterators, arrays, tensors or columns of tables.

    Other forms raise ValueError, such as a flat list, a whole table, or sets, which have no order.
    """
    histories = read_list(values, "histories", ordered=True)
    if not all(nested := list(map(is_collection, histories))):
        place = nested.index(False)
        found = f"found {histories[place]!r:.200} at index {place}"
        advice = "Pass a list of lists, such as [['1', '6'], []] for a user with two items and a user without items."
        raise ValueError(f"histories: expected one list of item IDs per user, {found}. {advice}")
    return [read_list(history, "histories", ordered=True) for history in histories]


def read_item_lists(values: Any, name: str, histories: int) -> list[list[Any]]:
    """Return `allow` or `deny` as lists of IDs: one list per history, or only one list, which holds for all histories.

    ValueError if `values` is neither a list of IDs nor a list of `histories` lists.
    """
    lists = read_list(values, name)
    nested = set(map(is_collection, lists))
    if True not in nested:
        return [lists]
    if False in nested or len(lists) != histories:
        expected = f"expected a list of item IDs, or one list per history ({histories} in total)"
        found = "lists and single IDs" if False in nested else f"a list of {len(lists)} lists"
        raise ValueError(f"{name}: {expected}, found {found}: {lists!r:.200}.")
    return [read_list(ids, name) for ids in lists]


def check_options(options: dict[str, Any], names: Sequence[str], read_before: Sequence[str] = ("batch_size",)) -> dict:
    """Return the options that are not None, with `allow`, `deny`, `rerank` as lists; ValueError for invalid options."""
    if unknown := sorted(options.keys() - names):
        raise ValueError(f"Unknown option {unknown[0]!r}. The options are {', '.join((*names, *read_before))}.")
    return {name: _read_option(name, value) for name, value in options.items() if value is not None}


def _read_option(name: str, value: Any) -> Any:
    match name:
        case "allow" | "deny":
            return read_list(value, name)
        case "rerank":
            rules = list(value) if isinstance(value, list | tuple) else [value]
            if not all(map(callable, rules)):
                expected = "a rule, such as at_most(2, 'category'), or a list of rules"
                raise ValueError(f"`rerank` must be {expected}, found {value!r:.100}.")
            return rules
        case "where" | "where_not":
            check_conditions(name, value)
        case "exclude_history":
            check_bool(name, value)
        case "top_k" | "candidates":
            check_count(name, value)
    return value


def check_conditions(name: str, value: Any) -> None:
    """Raise ValueError unless the conditions on attributes are a dict."""
    if not isinstance(value, Mapping):
        raise ValueError(f"`{name}` must be a dict, such as {{'in_stock': True}}, found {value!r:.100}.")


@contextmanager
def user_errors(name: str, advice: str) -> Iterator[None]:
    """Turn any error of a function or value of the user into a ValueError that ends with `advice`."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error!s:.300}".rstrip(".")
        raise ValueError(f"{name} failed with {reason}. {advice}") from error
