"""Train and judge any set of models on one data set, and print and plot the comparison.

    python scripts/compare.py scripts/comparisons/ml-latest-small.yaml
    python scripts/compare.py scripts/comparisons/ml-1m.yaml --split validation

The file says `recipe`, the configuration whose data, split and protocol hold for all; `models`, each with one of
`baseline: NAME` and its parameters, `recipe: FILE` and options of it, or `checkpoint: FOLDER`; and perhaps `published`,
figures of others among candidates, by the columns of the paper's Table 2, to print beside. Every model is judged in a
process of its own, which trains it where it is not there yet, and kept in `--output_dir`: what is there already is not
run again, and refused where it is of other options, data or weights. Differences are tested user by user.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads make small models much slower

import argparse
import dataclasses
import hashlib
import json
import logging
import re
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from datasets import Dataset
from matplotlib.figure import Figure
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_bert4rec.cli.evaluate import evaluator
from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.cli.prepare import describe_data, prepare, protocol, sampled_by, whole_histories
from hf_bert4rec.cli.recipe import Recipe, parse_recipe
from hf_bert4rec.cli.run import run
from hf_bert4rec.data.audit import audit
from hf_bert4rec.data.histories import target_items
from hf_bert4rec.evaluation.baselines import BASELINES, DataCollatorWithUsers
from hf_bert4rec.evaluation.comparison import (
    SMALLEST_P,
    UserResults,
    evaluate_users,
    group_metrics,
    holm,
    paired_difference,
    split_metrics,
    user_groups,
)
from hf_bert4rec.evaluation.ranking import SAMPLED_METRICS, bootstrap_interval, how_sampled, ndcg_gains
from hf_bert4rec.hub.checkpoint import check_sizes, fetch_checkpoint, weight_files
from hf_bert4rec.hub.model_card import markdown_table
from hf_bert4rec.hub.run_facts import UNPUBLISHED_OPTIONS, RunFacts
from hf_bert4rec.models.configuration_bert4rec import SPECIAL_TOKENS

KINDS = ("baseline", "recipe", "checkpoint")
READ = ("split", "max_length", "popularity_candidates", "uniform_candidates")
"""Options of a recipe, beside its reading and splitting, that decide what a model is fitted on and judged by."""

SAME_SPLIT = ("validation_time", "test_time", "validation_in_train")
"""Options that say, with `split` and `exclude_history`, what a model may know of its targets: the same for all."""

SAME_MODEL = ("output_dir", "disable_tqdm", "resume_from_checkpoint", "use_cpu")  # options that change no weight


COLUMNS = (
    "95 %: interval of NDCG@10 over users (bootstrap). Coverage: share of the items that anybody is recommended. "
    "Popularity: how often a recommended item occurs in training, as a multiple of a target. Ties: share of the users "
    "whose target has the score of another item. Training: seconds on processes × threads. GB: peak of the process."
)


def read(path: str) -> dict[str, Any]:
    """A comparison, checked.

    Raises:
        ValueError: The file does not hold what a comparison needs, or something else as well.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML: {error}") from error
    if not isinstance(config, dict) or not {"recipe", "models"} <= set(config) <= {"recipe", "models", "published"}:
        raise ValueError(f"{path}: expected recipe, models and perhaps published, found {config}."[:300])
    if not isinstance(config["models"], dict) or not config["models"]:
        raise ValueError(f"{path}: expected names of models under `models`, found {config['models']}.")
    for name, model in config["models"].items():
        if not isinstance(model, dict) or sum(kind in model for kind in KINDS) != 1:
            raise ValueError(f"{path}: expected one of {', '.join(KINDS)} for {name!r}, found {model}.")
        if model.get("baseline", "popularity") not in BASELINES:
            raise ValueError(
                f"{path}: expected a baseline among {', '.join(BASELINES)} for {name!r}, found {model['baseline']!r}."
            )
        if "checkpoint" in model and len(model) > 1:
            raise ValueError(f"{path}: a checkpoint takes no options, found {model} for {name!r}.")
    config["published"] = config.get("published") or {}
    check_names(path, config)
    return config


def check_names(path: str, config: dict[str, Any]) -> None:
    """Refuse models that would share a file, and published figures that no table shows."""
    slugs = [slug(name) for name in config["models"]]
    for name in config["models"]:
        if slugs.count(slug(name)) > 1:
            raise ValueError(f"{path}: {name!r} and another model would have the same file, {slug(name)}: rename one.")
        if "|" in name:
            raise ValueError(f"{path}: a name with | in it breaks the tables: rename {name!r}.")
    for name, figures_of in config["published"].items():
        given = figures_of.values() if isinstance(figures_of, dict) else [figures_of]
        for figure in given:
            if not isinstance(figure, dict) or not all(isinstance(value, (int, float)) for value in figure.values()):
                raise ValueError(f"{path}: expected SOURCE: {{metric: figure, …}} for {name!r} under `published`.")
            if unknown := set(figure) - set(SAMPLED_METRICS):
                raise ValueError(
                    f"{path}: expected figures among candidates, {', '.join(SAMPLED_METRICS)}, for {name!r} under "
                    f"`published`, found {min(unknown)}."
                )


def slug(name: str) -> str:
    """A name for files."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def train_and_judge(config: dict[str, Any], name: str, split: str, folder: str) -> None:
    """One model of a comparison: its judgement goes into `folder`, the facts last.

    Raises:
        ValueError: The model is of another catalogue, or was trained on other data.
    """
    transformers.logging.disable_progress_bar()
    for module in ("interactions", "run"):  # the data are the same for all, and were told of once
        logging.getLogger(f"hf_bert4rec.{module}").setLevel(logging.WARNING)
    recipe = parse_recipe([config["recipe"], f"--output_dir={tempfile.gettempdir()}", "--disable_tqdm=true"])
    interactions, tokenizer, histories = prepare(recipe)
    options = dict(config["models"][name])
    data, collator, started = describe_data(recipe, interactions), None, time.perf_counter()
    if "baseline" in options:
        model = BASELINES[options.pop("baseline")](
            whole_histories(recipe, interactions, tokenizer), len(tokenizer), **options
        )
        collator = DataCollatorWithUsers(tokenizer, model.users)
        seconds, machine = time.perf_counter() - started, f"1 × {torch.get_num_threads()} threads"
    else:
        checkpoint = fetch_checkpoint(options.get("checkpoint") or trained(options, f"{folder}/{slug(name)}"))
        model, its_tokenizer = (
            AutoModelForMaskedLM.from_pretrained(checkpoint),
            AutoTokenizer.from_pretrained(checkpoint),
        )
        check_sizes(model, its_tokenizer)
        trained_facts = RunFacts.load(checkpoint)
        check_split(name, recipe, parse_recipe([str(checkpoint)]))
        if trained_facts.data.sha256 != data.sha256 or its_tokenizer.items != tokenizer.items:
            raise ValueError(f"{checkpoint} was trained on other data or items than {config['recipe']} reads.")
        tokenizer, seconds, machine = its_tokenizer, trained_facts.seconds or 0, str(trained_facts.machine)
        _, _, histories = prepare(recipe, tokenizer)  # a model may read fewer items than another
    rows, counts = histories[split], item_counts(recipe, interactions, tokenizer)
    trainer = evaluator(model, recipe, tokenizer)
    trainer.data_collator = collator or trainer.data_collator
    started = time.perf_counter()
    judgement = evaluate_users(trainer, rows)
    scoring = time.perf_counter() - started
    Path(folder).mkdir(parents=True, exist_ok=True)
    arrays = {key: value for key, value in vars(judgement).items() if value is not None}
    np.savez_compressed(f"{folder}/{slug(name)}.npz", **arrays)
    facts = {
        "made by": made_by(config, name, split, str(data.sha256), folder),
        "protocol": protocol(recipe, len(tokenizer.items)),
        "figures": split_metrics(judgement, target_items(rows), counts, sampled_by(recipe)),
        "seconds": round(seconds, 1),
        "machine": machine,
        "users a second": round(rows.num_rows / scoring, 1),
        "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "threads": torch.get_num_threads(),
    }
    Path(f"{folder}/{slug(name)}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def made_by(config: dict[str, Any], name: str, split: str, data: str, folder: str) -> dict[str, Any]:
    """All that decides about a model's judgement, as JSON keeps it: with other options it is another."""
    model, shared = config["models"][name], parse_recipe([config["recipe"], f"--output_dir={tempfile.gettempdir()}"])
    parts: dict[str, Any] = {"model": model, "split": split, "data": data}
    parts["judged by"] = {option: getattr(shared.run, option) for option in READ}
    parts["judged by"]["exclude_history"] = shared.model.exclude_history
    parts["judged by"] |= dataclasses.asdict(shared.reading) | dataclasses.asdict(shared.splitting)
    if "recipe" in model:
        parts["recipe"] = deciding(parse_recipe(recipe_words(model, folder)).given)
    if "checkpoint" in model:
        checkpoint = fetch_checkpoint(model["checkpoint"])
        weights = [(checkpoint / file).read_bytes() for file in weight_files(checkpoint)]
        parts["weights"] = [hashlib.sha256(content).hexdigest() for content in weights]
    return json.loads(json.dumps(parts, default=str))


def deciding(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a recipe that decide about weights."""
    return {name: value for name, value in options.items() if not name.startswith((*SAME_MODEL, *UNPUBLISHED_OPTIONS))}


def check_split(name: str, shared: Recipe, other: Recipe) -> None:
    """Refuse a model that was trained, or chosen, by another split than all are judged by.

    Raises:
        ValueError: Names what differs.
    """
    both = [
        (shared.run, other.run, ("split",)),
        (shared.model, other.model, ("exclude_history",)),
        (shared.splitting, other.splitting, SAME_SPLIT),
    ]
    for ours, its, options in both:
        for option in options:
            wanted, found = getattr(ours, option), getattr(its, option)
            if wanted != found:
                raise ValueError(
                    f"{name}: {option} is {found}, where the comparison has {wanted}: it may know targets that it is "
                    "judged by. Say the same for all, in the recipe of the comparison."
                )


def check(path: str, name: str, model: dict[str, Any], folder: str, shared: Recipe) -> None:
    """Find the mistakes of a model's line before any model is trained.

    Raises:
        ValueError: A parameter that the baseline has not, or a value of it that it cannot have; or another split.
        OSError: There is no such checkpoint.
    """
    if "baseline" in model:
        options = {option: value for option, value in model.items() if option != "baseline"}
        first = len(SPECIAL_TOKENS)
        two_items = {"user": ["u", "v"], "input_ids": [[first, first + 1], [first + 1]], "timestamps": [[0, 2], [1]]}
        try:
            BASELINES[model["baseline"]](Dataset.from_dict(two_items), first + 2, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name}: {error}") from error
    elif "checkpoint" in model:
        check_split(name, shared, parse_recipe([str(fetch_checkpoint(model["checkpoint"]))]))
    else:
        try:
            check_split(name, shared, parse_recipe(recipe_words(model, folder)))
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from error


def recipe_words(options: dict[str, Any], folder: str) -> list[str]:
    """A model's recipe and options, as a command line."""
    given = [f"--{name}={value}" for name, value in options.items() if name != "recipe"]
    return [options["recipe"], f"--output_dir={folder}", "--disable_tqdm=true", *given]


def trained(options: dict[str, Any], folder: str) -> Path:
    """The checkpoint of a recipe with options, trained where it is not there yet; an interrupted run goes on."""
    words = recipe_words(options, folder)
    checkpoint, complete = Path(folder, "model"), parse_recipe(words)
    if not checkpoint.exists():
        begun = any(Path(folder).glob("checkpoint-*/trainer_state.json"))
        run(parse_recipe([*words, "--resume_from_checkpoint=true"]) if begun else complete)
        return checkpoint
    recorded = RunFacts.load(checkpoint).recipe
    if deciding(complete.given) != deciding(recorded):
        raise ValueError(f"{checkpoint} was trained with other options: move it away, or name it as a checkpoint.")
    return checkpoint


def item_counts(recipe: Recipe, interactions: Dataset, tokenizer: Any) -> np.ndarray:
    """How often each row of the item table occurs in training, (rows,)."""
    items = whole_histories(recipe, interactions, tokenizer).with_format("arrow")[:]["input_ids"]
    return np.bincount(items.combine_chunks().flatten().to_numpy(), minlength=len(tokenizer))


def load(folder: str, name: str) -> tuple[dict[str, Any], UserResults]:
    """What `train_and_judge` kept."""
    facts = json.loads(Path(f"{folder}/{slug(name)}.json").read_text(encoding="utf-8"))
    with np.load(f"{folder}/{slug(name)}.npz") as arrays:
        return facts, UserResults(**arrays)


def results(judged: dict[str, tuple[dict[str, Any], UserResults]]) -> str:
    """The models over the whole catalogue, and their costs: processes × threads of training; GB is the peak of the
    process that judged a model, which trained it too where it was not there yet.
    """
    header = [
        "model",
        "HR@10",
        "NDCG@10",
        "95 %",
        "MRR@10",
        "coverage",
        "popularity",
        "ties",
        "training",
        "users/s",
        "GB",
    ]
    lines = []
    for name, (facts, judgement) in judged.items():
        row = facts["figures"]
        low, high = bootstrap_interval(ndcg_gains(judgement.ranks, 10))
        quality = [f"{row['hr@10']:.4f}", f"{row['ndcg@10']:.4f}", f"{low:.4f} to {high:.4f}", f"{row['mrr@10']:.4f}"]
        beyond = [f"{row['coverage@10']:.3f}", f"{row['popularity@10']:.2f}", f"{row['ties']:.3f}"]
        threads = facts["machine"].split(" threads")[0]
        cost = [f"{facts['seconds']:,.0f} s on {threads}", f"{facts['users a second']:,.0f}", f"{facts['peak GB']:.2f}"]
        lines.append([name, *quality, *beyond, *cost])
    return markdown_table(header, lines)


def sampled(config: dict[str, Any], judged: dict[str, tuple[dict[str, Any], UserResults]]) -> str:
    """The metrics among candidates, by the columns of the paper's Table 2, the published ones beside."""
    lines = []
    any_sampled = any(how_sampled(facts["figures"]) for facts, _ in judged.values())
    for name in dict.fromkeys([*judged, *config["published"]]):
        row = judged[name][0]["figures"] if name in judged else {}
        if among := how_sampled(row):
            lines.append([name, *(f"{row[f'{column}_{among}']:.4f}" for column in SAMPLED_METRICS)])
        for source, figure in config["published"].get(name, {}).items() if any_sampled else ():
            known = (f"{figure[column]:.4f}" if column in figure else "" for column in SAMPLED_METRICS)
            lines.append([f"{name} in {source}", *known])
    return markdown_table(["model", *(column.upper() for column in SAMPLED_METRICS)], lines) if lines else ""


def sliced(judged: dict[str, tuple[dict[str, Any], UserResults]], groups: dict[str, np.ndarray]) -> str:
    """NDCG@10 by kinds of targets and users."""
    groups = {name: users for name, users in groups.items() if users.any()}
    header = ["NDCG@10", *(f"{name} ({users.sum():,})" for name, users in groups.items())]
    lines = [
        [name, *(f"{group_metrics(judgement, users, group)['ndcg@10']:.4f}" for group, users in groups.items())]
        for name, (_, judgement) in judged.items()
    ]
    return markdown_table(header, lines)


def tested(judged: dict[str, tuple[dict[str, Any], UserResults]]) -> str:
    """Every pair of models: the difference of NDCG@10, its interval, and p corrected for the number of pairs."""
    ranked = sorted(judged, key=lambda name: -judged[name][0]["figures"]["ndcg@10"])
    found = {pair: paired_difference(*(judged[name][1].ranks for name in pair)) for pair in combinations(ranked, 2)}
    corrected = holm({pair: difference.p for pair, difference in found.items()})
    lines = [
        [
            f"{first} − {second}",
            f"{it.mean:+.4f}",
            f"{it.low:+.4f} to {it.high:+.4f}",
            f"{'≤ ' if it.p == SMALLEST_P else ''}{corrected[first, second]:.4f}",
        ]
        for (first, second), it in found.items()
    ]
    return markdown_table(
        ["difference of NDCG@10", "", "95 %, this pair", f"p, corrected for {len(found)} pairs"], lines
    )


def plot(judged: dict[str, tuple[dict[str, Any], UserResults]], path: str, title: str) -> None:
    """NDCG@10 with its intervals, a bar a model, best on top."""
    ranked = sorted(judged, key=lambda name: judged[name][0]["figures"]["ndcg@10"])
    gains = [ndcg_gains(judged[name][1].ranks, 10) for name in ranked]
    means, ends = np.array([gain.mean() for gain in gains]), np.array([bootstrap_interval(gain) for gain in gains]).T
    figure = Figure(figsize=(8, 0.8 + 0.4 * len(ranked)), layout="constrained")
    axes = figure.subplots()
    axes.barh(ranked, means, xerr=np.abs(ends - means), color="C0", ecolor="gray")
    axes.set_xlabel("NDCG@10, 95 % interval over users")
    axes.set_title(title, fontsize=8, wrap=True)
    figure.savefig(path, dpi=120)


def other_than_asked(config: dict[str, Any], split: str, data: str, folder: str) -> list[str]:
    """What differs between the judgements that are kept and those asked for, a line a file."""
    lines = []
    for name in config["models"]:
        kept = Path(folder, f"{slug(name)}.json")
        if kept.exists():
            was = json.loads(kept.read_text(encoding="utf-8")).get("made by", {})
            wanted = made_by(config, name, split, data, folder)
            if differ := differences(was, wanted):
                lines.append(f"{kept}: {', '.join(differ)}")
    return lines


def differences(was: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What differs between two tables, as `name was → is`."""
    found = []
    for name in {**wanted, **was}:
        old, new = was.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new)
        elif old != new:
            found.append(f"{name} {old} → {new}")
    return list(dict.fromkeys(found))


def compare(path: str, split: str, folder: str) -> str:
    """Run what is missing, and tell everything."""
    config = read(path)
    recipe = parse_recipe([config["recipe"], f"--output_dir={tempfile.gettempdir()}"])
    interactions, tokenizer, histories = prepare(recipe)
    findings = audit(histories)
    checksum = str(describe_data(recipe, interactions).sha256)
    for name, model in config["models"].items():
        check(path, name, model, folder, recipe)
    if split not in histories:
        raise ValueError(f"{config['recipe']} makes no split {split!r}, only {', '.join(histories)}.")
    if config["published"] and "candidates" not in histories[split].column_names:
        raise ValueError(f"{path}: what is published are figures among candidates, and {config['recipe']} draws none.")
    if others := other_than_asked(config, split, checksum, folder):
        raise ValueError("\n".join(["what is kept is not what is asked for. Move it away:", *others]))
    for name in config["models"]:
        if Path(folder, f"{slug(name)}.json").exists():
            continue
        print(f"{name} …", flush=True)
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            alone.submit(train_and_judge, config, name, split, folder).result()
    judged = {name: load(folder, name) for name in config["models"]}
    whole, among = next(iter(judged.values()))[0]["protocol"]
    groups = user_groups(histories[split], item_counts(recipe, interactions, tokenizer))
    users = f"{histories[split].num_rows:,} users"
    text = [f"Protocol: {split}, {whole}; {users}.", results(judged), COLUMNS]
    if table := sampled(config, judged):
        text += [f"Protocol: {split}, {among}; {users}; never to be compared with the above.", table]
    text += [sliced(judged, groups), tested(judged)]
    if leaks := [f"- {finding}" for finding in findings if finding.leak and len(finding.rows)]:
        text += ["**Leaks**, or actions that somebody repeated at one time:", "\n".join(leaks)]
    else:
        text += ["Leaks were looked for, and none found."]
    text += ["What the split lets a model know:"]
    text += ["\n".join(f"- {finding}" for finding in findings if not finding.leak)]
    report = "\n\n".join(text) + "\n"
    Path(folder, "comparison.md").write_text(report, encoding="utf-8")
    plot(judged, f"{folder}/comparison.png", f"{split}, {whole}")
    return report + f"\nIn {folder}: comparison.md, comparison.png, and the ranks of every user."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of the comparison")
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="test, once all is chosen")
    parser.add_argument("--output_dir", help="default: runs/compare-CONFIG-SPLIT")
    args = parser.parse_args()
    folder = args.output_dir or f"runs/compare-{Path(args.config).stem}-{args.split}"
    try:
        with plain_errors():
            print(compare(args.config, args.split, folder))
    except KeyboardInterrupt:
        sys.exit(f"compare.py: stopped. The same again goes on with what is in {folder}.")
