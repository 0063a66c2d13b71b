"""Small logs and rows for the tests of histories and splits."""

from datasets import Dataset
from hypothesis import strategies as st

PAD, MASK, UNK = 0, 1, 2
A, B, C, D, E = range(3, 8)


def log_of(*rows):
    """Interactions from (user, item, timestamp)."""
    users, items, timestamps = zip(*rows, strict=True)
    return Dataset.from_dict({"user": users, "item": items, "timestamp": timestamps})


def row(number, user, input_ids, timestamps, labels=None, history=None):
    """A row as the splits should have it."""
    return {
        "row": number,
        "user": user,
        "input_ids": input_ids,
        "timestamps": timestamps,
        "labels": labels,
        "history": history,
        "length": len(input_ids),
    }


@st.composite
def logs(draw):
    """Up to 6 users whose actions each have a timestamp of their own, in any order of the rows."""
    users = draw(st.lists(st.integers(0, 5), min_size=3, max_size=40))
    users += users[:1] * 3
    timestamps = draw(st.permutations(range(len(users))))
    items = draw(st.lists(st.sampled_from("abcdefgh"), min_size=len(users), max_size=len(users)))
    return log_of(*zip(map(str, users), items, timestamps, strict=True))


def actions(split):
    """Multiset of (user, time), without the query's own of validation and test."""
    return [
        (user, time)
        for user, times, labels in zip(split["user"], split["timestamps"], split["labels"], strict=True)
        for time in (times if labels is None else times[:-1])
    ]


def targets(split):
    return [(user, times[-1]) for user, times in zip(split["user"], split["timestamps"], strict=True)]
