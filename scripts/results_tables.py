"""Write the tables of results in README.md and docs/ from the files in scripts/results.

    python scripts/results_tables.py            # writes the tables and the reports of comparisons
    python scripts/results_tables.py --check    # exits with 1 if one of them is not current

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. NAME is a key of `TABLES`. Its figures come from:

- `comparison-DATA.json`: a copy of the comparison.json of `hf-bert4rec compare`. `comparison-DATA.md` is its report.
- `*.jsonl`: one line per run of `scripts/study.py`, per measurement of `scripts/benchmark.py`, or per seed.
- `runs.yaml`: single runs.
- `published.yaml`: published figures, with source and protocol.
- `data.yaml`: the sizes of the datasets.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import yaml

from hf_bert4rec.cli.comparison_report import format_interval, format_report, groups_table
from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.evaluation.ranking import SAMPLED_METRICS
from hf_bert4rec.hub.model_card import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "scripts" / "results"
PAGES = ("README.md", "docs/results.md", "docs/performance.md")
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
OURS = "hf-bert4rec"
CLOZE = "BERT4Rec, cloze rows"
COLUMNS = {"hr@10": "HR@10", "ndcg@10": "NDCG@10"}
NEIGHBORS = ("neighbors of the history", "neighbors of the last 10")
Rows = list[list[str]]


# -------------------------------------------------------------------------------------------------------------- files


def load_comparison(data: str) -> dict[str, Any]:
    """Read the numbers of a comparison."""
    return json.loads((RESULTS / f"comparison-{data}.json").read_text(encoding="utf-8"))


def load_lines(name: str) -> list[dict[str, Any]]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def load_yaml(name: str) -> Any:
    """Read a YAML file."""
    return yaml.safe_load((RESULTS / f"{name}.yaml").read_text(encoding="utf-8"))


def find_runs(data: str, kind: str) -> list[dict[str, Any]]:
    """Return the single runs on a dataset that have metrics of a kind: `test`, `sampled` or `candidates`."""
    return [run for run in load_yaml("runs") if run["data"] == data and kind in run]


def find_published(data: str, kind: str = "full_ranking") -> list[dict[str, Any]]:
    """Return the published figures for a dataset, each with its source."""
    published = load_yaml("published")
    return [row | {"source": published["sources"][row["source"]]} for row in published[kind] if row["data"] == data]


# ------------------------------------------------------------------------------------------------------------ quality


def data_table() -> str:
    """Return the sizes of the datasets."""
    rows = [
        [
            data["title"],
            *(f"{data[size]:,}" for size in ("users", "items", "actions")),
            f"{data['actions'] / data['users']:.0f}",
        ]
        for data in load_yaml("data").values()
    ]
    return markdown_table(["data", "users", "items", "interactions", "interactions per user"], rows)


def format_metrics(metrics: Mapping[str, float], names: Sequence[str]) -> list[str]:
    """Return metrics with four decimals; "" where one is missing."""
    return [f"{metrics[name]:.4f}" if name in metrics else "" for name in names]


def format_source(row: Mapping[str, Any]) -> str:
    """Return the source of a published figure, and how its protocol differs from ours."""
    source = row["source"]
    name = ", ".join(filter(None, [source["authors"], source.get("venue")]))
    text = f"[{name}]({source['url']}), {source['place']}"
    if row.get("timestamps"):
        text += "; reads timestamps"
    return f"{text}; {row['note']}" if "note" in row else text


def full_ranking_table(data: str, ours: Mapping[str, str]) -> str:
    """Return our results and the published ones over the whole catalog, the lowest NDCG@10 first.

    Args:
        data: The dataset.
        ours: Model of the comparison or single run → its name in the table, if that is another one.
    """
    rows: list[tuple[float, list[str]]] = []
    compared = load_comparison(data)["models"]
    for name, model in compared.items():
        cells = [
            ours.get(name, name),
            *format_metrics(model["metrics"], [*COLUMNS]),
            format_interval(model["interval"]),
        ]
        training = f"{model['training_seconds']:,.0f} s on {model['processes']} × {model['threads']}"
        rows.append((model["metrics"]["ndcg@10"], [*cells, training, "this package"]))
    for run in find_runs(data, "test"):
        if "interval" in run and run["model"] not in compared:
            cells = [ours.get(run["model"], run["model"]), *format_metrics(run["test"], [*COLUMNS])]
            training = f"{run['seconds']:,} s on 1 × 1"
            cells += [format_interval(run["interval"]), training, "this package"]
            rows.append((run["test"]["ndcg@10"], cells))
    for row in find_published(data):
        cells = [f"*{row['model']}*", *format_metrics(row, [*COLUMNS]), "", "", format_source(row)]
        rows.append((row["ndcg@10"], cells))
    rows.sort(key=lambda row: row[0])
    header = ["model", *COLUMNS.values(), "95 % interval", "training", "source"]
    return left_align_last(markdown_table(header, [cells for _, cells in rows]))


def published_table(data: str) -> str:
    """Return published results over the whole catalog, the lowest NDCG@10 first."""
    rows = sorted(find_published(data), key=lambda row: row["ndcg@10"])
    cells = [[row["model"], *format_metrics(row, [*COLUMNS]), format_source(row)] for row in rows]
    return left_align_last(markdown_table(["model", *COLUMNS.values(), "source"], cells))


def left_align_last(table: str) -> str:
    """Align the last column of a table, which is text, to the left."""
    return table.replace("---:|\n", "---|\n", 1)


def differences_table(data: str, models: Sequence[str]) -> str:
    """Return the differences of NDCG@10 between some models of a comparison."""
    summary = load_comparison(data)
    rows: Rows = []
    for pair in summary["differences"]:
        if set(pair["models"]) <= {*models}:
            p = f"{'≤ ' if pair['p_is_bound'] else ''}{pair['p']:.4f}"
            interval = format_interval(pair["interval"], "+")
            rows.append([" − ".join(pair["models"]), f"{pair['mean']:+.4f}", interval, p])
    count = len(summary["differences"])
    return markdown_table(["pair", "difference of NDCG@10", "95 % interval", f"p, corrected for {count} pairs"], rows)


def sampled_table(data: str, models: Sequence[str]) -> str:
    """Return metrics among sampled candidates, ours below those of the paper."""
    summary = load_comparison(data)
    rows: Rows = []
    for name in models:
        for metrics in summary["published"].get(name, {}).values():
            rows.append([f"{name}, paper", *format_metrics(metrics, SAMPLED_METRICS)])
        runs = [run for run in find_runs(data, "candidates") if run["model"] == name]
        rows += [[f"{name}, this package", *format_metrics(run["candidates"], SAMPLED_METRICS)] for run in runs]
        if runs:
            continue
        names = [f"{metric}_popularity_sampled" for metric in SAMPLED_METRICS]
        rows.append([f"{name}, this package", *format_metrics(summary["models"][name]["metrics"], names)])
    return markdown_table(["model", *map(str.upper, SAMPLED_METRICS)], rows)


def paper_protocol_table() -> str:
    """Return the results on Beauty by the paper's own protocol."""
    rows = [
        [f"{row['model']}, paper", *format_metrics(row, SAMPLED_METRICS), ""]
        for row in find_published("beauty", "popularity_sampled")
    ]
    rows += [
        [f"{run['model']}, this package", *format_metrics(run["sampled"], SAMPLED_METRICS), f"{run['seconds']:,}"]
        for run in find_runs("beauty", "sampled")
    ]
    return markdown_table(["model", *map(str.upper, SAMPLED_METRICS), "seconds"], rows)


def seeds_table(recipes: Mapping[str, str]) -> str:
    """Return the runs with several seeds, and their means; `recipes`: name of a recipe -> file of its runs."""
    rows: Rows = []
    for recipe, name in recipes.items():
        runs = load_lines(name)
        columns: list[list[float]] = []
        for run in runs:
            test = run["test"]
            columns.append([run["validation"]["ndcg@10"], test["ndcg@10"], test["hr@10"]])
            columns[-1].append(test["ndcg@10_popularity_sampled"])
            values = [f"{value:.4f}" for value in columns[-1]]
            resumed = " (after a resume)" if run.get("resumed") else ""
            training = f"{run['seconds']:,.0f} s on {run['machine'].split(' threads')[0]}{resumed}"
            rows.append([recipe, str(run["seed"]), *values, format_interval(run["interval"]), training])
        spread = [f"{mean(column):.4f} ± {stdev(column):.4f}" for column in zip(*columns, strict=True)]
        rows.append(["", "mean ± standard deviation", *spread, "", ""])
    header = ["recipe", "seed", "validation NDCG@10", "test NDCG@10", "test HR@10", "sampled NDCG@10"]
    return markdown_table([*header, "95 % interval of test NDCG@10", "training"], rows)


def study_table(name: str) -> str:
    """Return validation NDCG@10 of the variants of a study: mean over seeds, and the gain if it is cumulative."""
    variants: dict[str, list[dict[str, Any]]] = {}
    for line in load_lines(name):
        variants.setdefault(line["variant"], []).append(line)
    cumulative = any(line.get("cumulative") for line in load_lines(name))
    several = max(map(len, variants.values())) > 1
    rows: Rows = []
    means: list[float] = []
    for variant, lines in variants.items():
        means.append(mean(line["ndcg@10"] for line in lines))
        row = [plain_numbers(variant), f"{means[-1]:.4f}", f"{mean(line['standard_error'] for line in lines):.4f}"]
        if several:
            row.append(", ".join(f"{line['ndcg@10']:.4f}" for line in lines))
        if cumulative:
            row.append(f"{means[-1] - means[-2]:+.4f}" if len(means) > 1 else "")
        rows.append(row)
    header = ["variant", "validation NDCG@10", "standard error", *["seeds"] * several, *["gain"] * cumulative]
    return markdown_table(header, rows)


def plain_numbers(text: str) -> str:
    """Return the name of a variant with leading zeros and American spelling; the files have older names."""
    return re.sub(r"(?<![\d.])\.(\d)", r"0.\1", text).replace("neighbours", "neighbors")


def mask_ratio_table() -> str:
    """Return validation NDCG@10 for shares of masked items, on two datasets."""
    found: dict[str, dict[str, str]] = {}
    names = {"MovieLens-1M": "mask-ratio-ml-1m", "Beauty": "mask-ratio-beauty"}
    for title, name in names.items():
        for line in load_lines(name):
            found.setdefault(line["variant"], {})[title] = f"{line['ndcg@10']:.4f} ± {line['standard_error']:.4f}"
    rows = [[share, *(values.get(title, "") for title in names)] for share, values in sorted(found.items())]
    return markdown_table(["share of masked items", *names], rows)


def quality_table() -> str:
    """Return validation NDCG@10 after training for some time, next to RePlay."""
    ours, other = (line["curve"] for line in load_lines("quality"))
    goal = other[-1][2]
    reached = next(seconds for _, seconds, score in ours if score >= goal)
    rows = [
        [f"{OURS}, `ml-1m.yaml` at hidden size 64", f"{ours[-1][1]:.0f}", f"{ours[-1][2]:.4f}", f"{reached:.0f}"],
        ["RePlay 0.22.0, not tuned", f"{other[-1][1]:.0f}", f"{goal:.4f}", f"{other[-1][1]:.0f}"],
    ]
    return markdown_table(["package", "seconds", "validation NDCG@10", f"seconds until at least {goal:.4f}"], rows)


def readme_table() -> str:
    """Return the main results: NDCG@10, and HR@10 in parentheses."""
    titles = {"ml-1m": "MovieLens-1M", "beauty": "Amazon Beauty, 54,542 items", "beauty-5core": "Amazon Beauty 5-core"}
    names = {
        "Popularity": "Popularity",
        "Markov chain": "Markov chain, first order",
        "SASRec": "SASRec, this package",
        "BERT4Rec": "**BERT4Rec, this package**",
    }
    table = {name: [title] for name, title in names.items()}
    best = ["*Best published from item IDs*"]
    for data in titles:
        metrics = {name: model["metrics"] for name, model in load_comparison(data)["models"].items()}
        metrics |= {run["model"]: run["test"] for run in find_runs(data, "test") if "hr@10" in run["test"]}
        for name, cells in table.items():
            cells.append("{ndcg@10:.4f} ({hr@10:.4f})".format(**metrics[name]) if name in metrics else "")
        first = max((row for row in find_published(data) if not row.get("timestamps")), key=lambda row: row["ndcg@10"])
        best.append("{} {ndcg@10:.4f} ({hr@10:.4f})".format(first["model"].split(",")[0], **first))
    return markdown_table(["NDCG@10 (HR@10)", *titles.values()], [*table.values(), best])


# -------------------------------------------------------------------------------------------------------- performance


def speed(line: Mapping[str, Any]) -> float:
    """Return items or users per second, by processor time where it was recorded on one thread of a CPU."""
    on_cpu = line["threads"] == 1 and line.get("device", "cpu") == "cpu"
    if line["what"] == "train":
        stolen = line["seconds_per_step"] / line["cpu_seconds_per_step"] if on_cpu else 1
        return line["items_per_second"] * stolen
    return line["users_per_cpu_second"] if on_cpu else line["users_per_second"]


def packages_table(name: str) -> str:
    """Return speed and memory of the packages: medians, and how many times faster ours is."""
    labels = {
        "replay": "RePlay",
        "recbole": "RecBole",
        "rectools": "RecTools",
        "hf_masked": "transformers, `hf_masked`",
    }
    lines: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in load_lines(name):
        peer = labels.get(line["peer"], line["peer"])
        label = " ".join(filter(None, [peer, "" if line["peer"] == OURS else line["version"], line.get("loss")]))
        label += ", `bf16=True`" if line.get("bf16") else ""
        lines.setdefault(label, {}).setdefault(line["what"], []).append(line)
    speeds = {label: {what: median(map(speed, of)) for what, of in runs.items()} for label, runs in lines.items()}
    rows: Rows = []
    for label in sorted(lines, key=lambda label: -speeds[label]["train"]):
        row = [f"**{label}**" if label == OURS else label]
        for what in ("train", "recommend"):
            if what in lines[label]:
                ratio = "" if label == OURS else f"{speeds[OURS][what] / speeds[label][what]:.1f} ×"
                peak = median(line["peak_rss_gb"] for line in lines[label][what])
                row += [f"{speeds[label][what]:,.0f}", ratio, f"{peak:.2f}", str(len(lines[label][what]))]
            else:
                row += [""] * 4
        rows.append(row)
    part = ["ours is faster by", "peak GB", "runs"]
    return markdown_table(["", "training, items/s", *part, "top 10, users/s", *part], rows)


def million_table() -> str:
    """Return what a million items cost."""
    rows: Rows = []
    for line in load_lines("million"):
        peak = f"{line['peak_rss_gb']:.2f}"
        if line["what"] == "train":
            rows.append([f"train, `--loss {line['loss']}`", f"{line['cpu_seconds_per_step']:.2f}", "", peak])
        else:
            users = line.get("users_per_cpu_second", line["users_per_second"])
            rows.append([f"{line['what']}, {line['users']:,} users", "", f"{users:,.0f}", peak])
    return markdown_table(["", "processor seconds per step", "users/s", "peak GB"], rows)


def large_log_table() -> str:
    """Return what each stage of a large log costs."""
    rows = [[it["stage"], f"{it['cpu seconds']:.1f}", f"{it['peak GB']:.2f}"] for it in load_lines("large-log")]
    return markdown_table(["stage", "processor seconds", "peak GB so far"], rows)


def latency_table() -> str:
    """Return what a request for one user costs: milliseconds of processor time, and memory of the process."""
    titles = {"synthetic-1m": "untrained"}
    rows = [
        [
            titles.get(line["checkpoint"], f"`{line['checkpoint']}`"),
            f"{line['items']:,}",
            str(line["hidden"]),
            str(line["length"]),
            f"{line['cpu_ms_median']:.0f}",
            f"{line['cpu_ms_p99']:.0f}",
            f"{line['peak_rss_gb']:.1f}",
        ]
        for line in load_lines("latency")
    ]
    header = ["model", "items", "hidden size", "history", "median ms", "99th percentile ms", "peak GB"]
    return markdown_table(header, rows)


def serving_table() -> str:
    """Return the time of requests at some rates, and the most requests per second, with and without batches."""
    rows = []
    for line in (it for it in load_lines("production") if it["measured"] == "serve"):
        load = f"{line['rate']:.0f} per second" if "rate" in line else f"{line.get('connections', 1)} at a time"
        how = line.get("what") or ("server" if line["batch"] > 1 else "server without batches")
        times = [f"{line[name]:.1f}" if name in line else "" for name in ("p50 ms", "p90 ms", "p99 ms")]
        rows.append([f"`{line['model']}`", how, load, f"{line['per second']:.0f}", *times])
    header = ["model", "how", "load", "answers per second", "median ms", "90 % ms", "99 % ms"]
    return markdown_table(header, rows)


def index_table() -> str:
    """Return speed and recall of indexes next to exact search."""
    lines = [line for line in load_lines("production") if line["measured"] == "index"]
    rows = []
    for line in lines:
        exact = next(it for it in lines if it["model"] == line["model"] and it["index"] == "none")
        ratio = line["users per second"] / exact["users per second"]
        numbers = [f"{line['users per second']:.0f}", f"{ratio:.1f} ×", f"{line['recall@10']:.3f}"]
        rows.append([f"{line['items']:,}", line["index"], *numbers, f"{line.get('seconds to build', 0):.0f}"])
    header = ["items", "index, effort", "users/s", "of exact", "recall@10", "seconds to build"]
    return markdown_table(header, rows)


def engines_table() -> str:
    """Return torch next to onnxruntime: calls, and all users of a file."""
    lines = [line for line in load_lines("production") if "engine" in line]
    rows = []
    for line in lines:
        if line["measured"] == "export":
            users = f"{1000 * line['users'] / line['ms per call']:.0f}"
            rows.append([line["engine"], f"calls with {line['users']} users", users, f"{line['ms per call']:.1f}"])
        else:
            what = f"all users of a file, processes: {line['processes']}"
            rows.append([line["engine"], what, f"{line['users per second']:.0f}", ""])
    return markdown_table(["engine", "", "users/s", "ms per call"], rows)


def memory_table() -> str:
    """Return the estimated over the measured memory of 16 shapes."""
    rows: Rows = []
    for line in load_lines("memory"):
        shape = [line.get("architecture", "bert4rec"), line["data"].removeprefix("synthetic-") + " items"]
        shape += [f"hidden size {line['hidden']}", f"{line['layers']} layers".replace("1 layers", "1 layer")]
        shape += [f"{line['batch']} × {line['length']}"]
        shape += ["gradient checkpointing"] if "gradient_checkpointing" in line else []
        shape += ["attention dropout"] if line["attention_dropout"] else []
        shape += [f"{line['attention']} attention"] if "attention" in line else []
        shape += [line["loss"]] if "loss" in line else []
        shape += [f"{line['num_negatives']:,} negatives"] if "num_negatives" in line else []
        shape += ["not shared"] if "unshared" in line else []
        estimated, measured = line["estimated_peak_gb"], line["training_peak_gb"]
        rows.append([", ".join(shape), f"{estimated:.2f}", f"{measured:.2f}", f"{estimated / measured - 1:+.0%}"])
    return markdown_table(["shape", "estimated GB", "measured GB", "difference"], rows)


def gpu_table() -> str:
    """Return what was measured on a GPU."""
    rows: Rows = []
    for line in load_lines("gpu-h200"):
        options = ["bf16"] if "bf16" in line else []
        options += [f"{line['attention']} attention"] if "attention" in line else []
        if line["what"] == "train":
            options.append(f"`loss_chunk_size` {line.get('loss_chunk_size', 128):,}")
            unit = "items/s"
        else:
            options.append(f"{line['users']:,} users, top {line['k']}")
            unit = "users/s"
        rows.append([line["what"], ", ".join(options), f"{speed(line):,.0f} {unit}", f"{line['peak_gpu_gb']:.2f}"])
    return markdown_table(["", "options", "speed", "peak GPU GB"], rows)


def scaling_table() -> str:
    """Return how seconds per step and memory grow along each axis."""
    sizes = {"synthetic-10k": 10_000, "synthetic-100k": 100_000, "synthetic-1m": 1_000_000}
    axes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in load_lines("scaling"):
        axes.setdefault((line["axis"], line.get("loss", "softmax")), []).append(line)
    rows: Rows = []
    for (axis, loss), lines in axes.items():
        x = [sizes[line["data"]] if axis == "catalogue" else line[axis] for line in lines]
        seconds = [line["seconds_per_step"] for line in lines]
        exponent = np.polyfit(np.log(x), np.log(seconds), 1)[0]
        name = axis.replace("catalogue", "items in the catalog")
        cells = [", ".join(f"{value:,}" for value in x), ", ".join(f"{value:.2f}" for value in seconds)]
        peaks = ", ".join(f"{line['peak_rss_gb']:.2f}" for line in lines)
        rows.append([f"{name}, {loss}", *cells, f"{exponent:.2f}", peaks])
    return markdown_table(["axis", "values", "seconds per step", "exponent", "peak GB"], rows)


def training_cost_table() -> str:
    """Return the work until rows for every prefix are better than cloze rows ever are, and that of a whole run."""
    curves = {line["name"]: line["curve"] for line in load_lines("training-cost-beauty-5core")}
    best = max(curves["cloze rows"], key=lambda point: point["ndcg@10"])
    better = next(point for point in curves["prefix rows"] if point["ndcg@10"] > best["ndcg@10"])
    points = {
        "cloze rows, best score": best,
        "prefix rows, first better score": better,
        "prefix rows, end": curves["prefix rows"][-1],
    }
    header = ["rows", "step", "validation NDCG@10", "teraflops", "processor seconds"]
    cells = {
        name: [f"{it['step']:,}", f"{it['ndcg@10']:.4f}", f"{it['teraflops']:.1f}", f"{it['seconds']:.0f}"]
        for name, it in points.items()
    }
    return markdown_table(header, [[name, *row] for name, row in cells.items()])


PARTS = {"num_followers": "chain", "repeat_head": "repeats"}


def any_log_table() -> str:
    """Return BERT4Rec with the recommended settings, the best other model, and the best simple model of each log."""
    rows: Rows = []
    for line in load_lines("any-log"):
        scores = line["ndcg@10"]
        others = sorted(scores.keys() - {"BERT4Rec"}, key=lambda name: -scores[name])
        best, simple = others[0], next(name for name in others if name != "SASRec")
        difference, of_simple = (line["differences"].get(name) for name in (best, simple))
        sizes = [f"{line[name]:,}" for name in ("users", "items", "interactions")]
        sizes += [", ".join(PARTS[name] for name in line["added parts"])]
        cells = [f"{best} {scores[best]:.4f}", f"{scores['BERT4Rec']:.4f}", f"{difference['mean']:+.4f}"]
        start, end = difference["interval"]
        cells += [f"{start:+.4f} to {end:+.4f}", f"{difference['p']:.3f}", f"{simple} {scores[simple]:.4f}"]
        cells += ["" if of_simple is None else f"{of_simple['p']:.3f}", f"{line['seconds']:.0f}"]
        rows.append([line["log"], *sizes, *cells])
    sizes = ["log", "users", "items", "interactions", "parts"]
    header = [*sizes, "best other", "BERT4Rec", "difference", "95 % interval", "p"]
    header += ["best simple model", "p of this pair", "seconds"]
    return markdown_table(header, rows)


def cold_items_table() -> str:
    """Return NDCG@10 of items without interactions, next to neighbors in feature space, and of the other items."""
    rows: Rows = []
    for line in load_lines("cold-items"):
        cells = [f"{line['users']:,}"]
        for ranking, others in (("among removed", ("chance", *NEIGHBORS)), ("among all", NEIGHBORS)):
            scores = line[ranking]
            cells += [f"{scores[name]:.4f}" for name in ("model", *others)]
        features = ", ".join(line["features"] or ["none"])
        cells += [f"{score:.4f}" for score in line["other items"].values()]
        rows.append([f"{line['log']}: {features}", str(line["seed"]), *cells])
    names = ["model", "chance", "neighbors", "of the last 10"]
    header = ["log: features", "seed", "users", *names, *(f"{it}, all items" for it in names if it != "chance")]
    return markdown_table([*header, "other items, validation", "other items, test"], rows)


def find_measurements(kind: str) -> list[dict[str, Any]]:
    """Return the lines of one measurement of `scripts/bidirectional.py`."""
    return [line for line in load_lines("bidirectional") if line["measured"] == kind]


def format_difference(line: Mapping[str, Any]) -> str:
    """Return the interval of a row minus the first row; "" for the first row. The lines have the first row minus it."""
    ends = [-end for end in reversed(line["difference_interval"])]
    return format_interval(ends, "+") if any(ends) else ""


def gaps_table() -> str:
    """Return the quality of filled gaps, by what is read."""
    rows: Rows = []
    for line in find_measurements("fill"):
        scores = [f"{line[name]:.4f}" for name in ("ndcg@10", "hr@10")]
        difference = "" if not line["difference"] else f"{-line['difference']:+.4f}"
        cells = [format_interval(line["interval"]), difference, format_difference(line)]
        rows.append([line["model"], *scores, *cells])
    header = [
        "model and what it reads",
        "NDCG@10",
        "HR@10",
        "95 % interval",
        "difference to the first row",
        "95 % interval",
    ]
    return markdown_table(header, rows)


def surprise_table() -> str:
    """Return how well injected items are found."""
    rows: Rows = []
    for line in find_measurements("surprise"):
        cells = [format_interval(line["interval"]), format_difference(line)]
        rows.append([line["method"], f"{line['auc']:.4f}", *cells])
    header = ["score", "area under the ROC curve", "95 % interval", "difference to the first row, 95 % interval"]
    return markdown_table(header, rows)


def explanations_table() -> str:
    """Return how far a score falls when items are removed, by the order in which they are removed."""
    lines = find_measurements("explain")
    rows: Rows = []
    for line in lines:
        more = [format_interval(ends, "+") for ends in line["more_interval"]]
        chosen = "" if line["order"] == "at random" else more[-1]
        rows.append([line["order"], *(f"{fall:+.2f}" for fall in line["fall"]), chosen])
    numbers = [f"{number} removed" for number in lines[0]["removed"]]
    return markdown_table(["order", *numbers, "last column minus random, 95 % interval"], rows)


def rules_table() -> str:
    """Return quality, coverage and diversity of the lists of each rule."""
    rows: Rows = []
    for line in find_measurements("rules"):
        cells = [f"{line['ndcg@10']:.4f}", format_difference(line), f"{100 * line['coverage']:.0f} %"]
        rows.append([line["rule"], *cells, f"{line['diversity']:.3f}", f"{line['genres']:.1f}", str(line["short"])])
    header = [
        "rule",
        "NDCG@10",
        "minus no rule, 95 % interval",
        "items in any list",
        "mean 1 - cosine",
        "genres per list",
        "short lists",
    ]
    return markdown_table(header, rows)


def drift_table() -> str:
    """Return NDCG@10 in the next period, and processor seconds, for three ways to keep a model up to date."""
    rows: Rows = []
    lines = load_lines("drift")
    for log in dict.fromkeys(line["log"] for line in lines):
        of_log = [line for line in lines if line["log"] == log]
        for line in of_log:
            scores, seconds = line["ndcg@10"].values(), line["seconds"].values()
            rows.append([log, str(line["period"]), *(f"{it:.4f}" for it in scores), *(f"{it:.0f}" for it in seconds)])
        means = [mean(line["ndcg@10"][name] for line in of_log) for name in ("once", "continued", "retrained")]
        times = [mean(line["seconds"][name] for line in of_log) for name in ("continued", "retrained")]
        rows.append([log, "mean", *(f"{it:.4f}" for it in means), *(f"{it:.0f}" for it in times)])
    names = ["trained once", "continued", "trained again", "seconds, continued", "seconds, trained again"]
    return markdown_table(["log", "period", *names], rows)


# -------------------------------------------------------------------------------------------------------------- pages

TABLES: dict[str, Callable[[], str]] = {
    "readme": readme_table,
    "data": data_table,
    "movielens-1m": lambda: full_ranking_table(
        "ml-1m", {"BERT4Rec": "**BERT4Rec, 62 epochs**", "BERT4Rec, 23 epochs": "**BERT4Rec, 23 epochs**"}
    ),
    "movielens-1m-differences": lambda: differences_table(
        "ml-1m", ["BERT4Rec", "BERT4Rec, 23 epochs", "SASRec", "GRU4Rec", "Markov chain"]
    ),
    "movielens-1m-seeds": lambda: seeds_table(
        {"`ml-1m.yaml`, 23 epochs": "seeds-ml-1m", "`ml-1m-128.yaml`, 62 epochs": "seeds-ml-1m-128"}
    ),
    "beauty-seeds": lambda: seeds_table({"`beauty.yaml`, 16 epochs": "seeds-beauty"}),
    "beauty-5core-seeds": lambda: seeds_table(
        {
            "`beauty-5core.yaml`, 24 epochs": "seeds-beauty-5core",
            "`sasrec-beauty-5core.yaml`, 8 epochs": "seeds-sasrec-beauty-5core",
        }
    ),
    "movielens-1m-sampled": lambda: sampled_table("ml-1m", ["Popularity", "BPR-MF", "GRU4Rec", "SASRec", "BERT4Rec"]),
    "movielens-20m": lambda: published_table("ml-20m"),
    "beauty": lambda: full_ranking_table("beauty", {"BERT4Rec": "**BERT4Rec**"}),
    "beauty-differences": lambda: differences_table("beauty", ["BERT4Rec", CLOZE, "SASRec", "GRU4Rec", "Markov chain"]),
    "beauty-sampled": lambda: sampled_table("beauty", ["Popularity", "BPR-MF", "GRU4Rec", "SASRec", CLOZE, "BERT4Rec"]),
    "beauty-paper-protocol": paper_protocol_table,
    "beauty-5core": lambda: full_ranking_table("beauty-5core", {"BERT4Rec": "**BERT4Rec**"}),
    "movielens-latest-small": lambda: full_ranking_table("ml-latest-small", {"BERT4Rec": "**BERT4Rec**"}),
    "movielens-latest-small-differences": lambda: differences_table(
        "ml-latest-small", ["BERT4Rec", "SASRec", "GRU4Rec", "Markov chain", "EASE"]
    ),
    "movielens-latest-small-at-time": lambda: full_ranking_table("ml-latest-small-at-time", {}),
    "movielens-latest-small-at-time-groups": lambda: groups_table(load_comparison("ml-latest-small-at-time")),
    "any-log": any_log_table,
    "cold-items": cold_items_table,
    "drift": drift_table,
    "gaps": gaps_table,
    "surprise": surprise_table,
    "explanations": explanations_table,
    "rules": rules_table,
    "what-helps": lambda: study_table("what-helps-ml-1m"),
    "needed": lambda: study_table("needed-ml-1m"),
    "stability": lambda: study_table("stability-ml-1m"),
    "mask-ratio": mask_ratio_table,
    "transfer": lambda: study_table("transfer-ml-latest-small"),
    "quality": quality_table,
    "packages-xeon": lambda: packages_table("side-by-side-xeon"),
    "packages-epyc": lambda: packages_table("side-by-side-epyc"),
    "large-log": large_log_table,
    "million": million_table,
    "latency": latency_table,
    "serving": serving_table,
    "indexes": index_table,
    "engines": engines_table,
    "memory": memory_table,
    "gpu": gpu_table,
    "scaling": scaling_table,
    "training-cost": training_cost_table,
}


def write_tables(page: str) -> str:
    """Return a page with current tables.

    Raises:
        ValueError: A marker names no table.
    """

    def current(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name not in TABLES:
            raise ValueError(f"Unknown table {name!r}. Use {', '.join(TABLES)}.")
        return f"{start}\n{TABLES[name]()}\n\n{end}"

    return MARKED.sub(current, page)


def current_files() -> dict[Path, str]:
    """Return the current text of all pages with tables and of all reports of comparisons."""
    files = {ROOT / page: write_tables((ROOT / page).read_text(encoding="utf-8")) for page in PAGES}
    for path in sorted(RESULTS.glob("comparison-*.json")):
        files[path.with_suffix(".md")] = format_report(load_comparison(path.stem.removeprefix("comparison-")))
    return files


def main() -> None:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not current")
    args = parser.parse_args()
    outdated = []
    for path, text in current_files().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            outdated.append(str(path.relative_to(ROOT)))
            if not args.check:
                path.write_text(text, encoding="utf-8")
    if args.check and outdated:
        sys.exit(f"{', '.join(outdated)}: not current. Run python scripts/results_tables.py.")
    print(f"Written: {', '.join(outdated)}." if outdated else "All tables are current.")


if __name__ == "__main__":
    with plain_errors():
        main()
