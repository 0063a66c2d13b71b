"""The cookbook: each recipe runs as it is printed and does what its goal says."""

import contextlib
import io
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import hf_bert4rec
from hf_bert4rec import ARCHITECTURES, LOSSES
from tests.conftest import needs

pytestmark = needs("torch", "2.13")  # trained models, and so the printed lists, differ between versions
DOCS = Path(__file__).parents[1] / "docs"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (DOCS / "cookbook.md").read_text("utf-8"), re.M | re.S))
SETUP = SECTIONS.pop("The example shop")


def blocks(section, kind="python"):
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def run(section, names):
    """Execute the code of a section and return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks(section):
            exec(compile(block, "cookbook.md", "exec"), names)
    return printed.getvalue()


def assert_same_output(printed, section):
    """The page shows what the code printed. Decimal numbers may differ a little: processors round differently."""
    shown = "".join(blocks(section, "text"))
    decimal = re.compile(r"-?\d+\.\d+")
    assert decimal.sub("#", printed).split() == decimal.sub("#", shown).split()
    numbers = [[float(number) for number in decimal.findall(text)] for text in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.02)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The folder of the example shop with its checkpoint, and the names that all recipes use."""
    folder, here = tmp_path_factory.mktemp("shop"), Path.cwd()
    names: dict = {}
    try:
        os.chdir(folder)
        printed = run(SETUP, names)
    finally:
        os.chdir(here)
    assert_same_output(printed, SETUP)
    assert float(re.fullmatch(r"test NDCG@10: (.*)\n", printed)[1]) > 0.2  # a random order gives 0.15
    return folder, names


def items(rows):
    return [row["item"] for row in rows]


def check_customer(names, printed):
    bought = {row["item"] for row in names["interactions"] if row["user"] == "u7"}
    assert set(names["by_customer"]["u7"]) == bought
    assert len(names["found"]) == 3
    assert not set(items(names["found"])) & bought


def check_repeats(names, printed):
    history, recommender = names["history"], names["recommender"]
    assert set(items(names["found"])) & set(history)
    assert not set(items(recommender([history], top_k=len(names["products"]))[0])) & set(history)


def check_one_click(names, printed):
    one, none = names["recommender"](names["visitors"].values(), top_k=3)
    assert len(one) == len(none) == 3
    assert "kitchen-1" not in items(one)
    assert items(one) != items(none)


def check_stock(names, printed):
    stock = dict(zip(names["products"]["item"], names["products"]["stock"], strict=True))
    assert len(names["found"]) == 3
    assert all(stock[item] > 0 for item in items(names["found"]))
    assert any(stock[item] == 0 for item in items(names["recommender"]([["tea-1", "tea-2"]])[0]))


def check_categories(names, printed):
    kinds = [item.partition("-")[0] for item in items(names["shown"])]
    assert len(kinds) == 5
    assert max(map(kinds.count, kinds)) == 2
    without = [item.partition("-")[0] for item in items(names["recommender"]([["tea-1", "tea-2"]], top_k=5)[0])]
    assert max(map(without.count, without)) > 2


def check_boost(names, printed):
    everything = names["recommender"]([["tea-1", "tea-2"]], top_k=30)[0]
    scores = {row["item"]: row["score"] * (10 if row["item"].endswith("6") else 1) for row in everything}
    assert items(names["boosted"]) == sorted(scores, key=scores.get, reverse=True)[:5]
    assert items(names["boosted"]) != items(everything[:5])


def check_diversity(names, printed):
    best = items(names["recommender"]([["tea-1", "tea-2"]], top_k=5)[0])
    assert items(names["different"])[0] == best[0]
    assert len({*items(names["different"])} - {*best}) >= 2


def check_similar(names, printed):
    (similar,) = names["recommender"].similar(["tea-1"], top_k=30)
    assert printed.startswith(similar[0]["title"])
    assert len(similar) == 29
    assert "tea-1" not in items(similar)


def check_reasons(names, printed):
    contributions = [row["contribution"] for row in names["reasons"]]
    assert max(contributions) == contributions[-1] > 1  # the last item is the one that tea-3 follows


def check_gap(names, printed):
    assert names["gap"][0]["item"] == "tea-2"  # customers buy along a category


def check_surprise(names, printed):
    assert max(names["rows"], key=lambda row: row["rank"])["item"] == "kitchen-4"


def check_vectors(names, printed):
    found = names["recommender"]([["tea-1", "tea-2"]], top_k=30, exclude_history=False)[0]
    order = names["np"].argsort(-names["scores"])
    assert names["item_vectors"].shape == (30, 33)
    assert [names["tokenizer"].items[place].as_py() for place in order] == items(found)
    total = sum(math.exp(score) for score in names["scores"])
    assert math.exp(max(names["scores"])) / total == pytest.approx(found[0]["score"], rel=1e-4)


def check_http(names, printed):
    assert items(names["answer"].json()["recommendations"][0]) == items(
        names["recommender"]([["tea-1", "tea-2"]], top_k=2)[0]
    )
    assert names["invalid"].status_code == 422


def check_parquet(names, printed):
    table = names["table"]
    assert set(table["user"]) == {f"u{user}" for user in range(40)}
    log = names["interactions"].to_pandas().sort_values("timestamp", kind="stable")
    for user in ("u0", "u17", "u39"):
        history = log["item"][log["user"] == user].tolist()
        found = table[table["user"] == user]
        assert found["item"].tolist() == items(names["recommender"]([history], top_k=2)[0])
        assert found["rank"].tolist() == [1, 2]


def check_simple(names, printed):
    counts = names["log"].groupby("user")["item"].value_counts()
    for user, own in names["own"].groupby("user"):
        assert own["count"].tolist() == sorted(counts[user], reverse=True)[:10]
        assert all(counts[user][item] == count for item, count in zip(own["item"], own["count"], strict=True))
    assert names["log"]["item"].value_counts()[names["popular"]].is_monotonic_decreasing
    bought = [list(of) for _, of in names["log"].groupby("user")["item"]]
    for row in names["chain"].itertuples():
        assert row.count == sum((row.item, row.next) in list(pairwise(of)) for of in bought)


def check_new_products(names, printed):
    old, grown = names["recommender"].tokenizer.items.to_pylist(), names["grown"]
    assert grown.tokenizer.items.to_pylist() == [*old, "tea-7"]
    found = {row["item"]: row["title"] for row in grown([names["history"]], top_k=40)[0]}
    assert found["tea-7"] == "Oolong"
    assert not {"sweets-1", "sweets-2"} & set(found)


def check_everything(names, printed):
    assert names["best"] in (20, 40, 60)
    assert sum(names["everything"]["train"]["length"]) == len(names["interactions"])
    assert set(names["everything"]) == {"train"}
    assert len(names["hf_bert4rec"].pipeline("runs/final")([["tea-1"]])[0]) == 10


def check_nightly(names, printed):
    """The script runs as it is printed: a better model becomes the current one, and a worse one does not."""
    first, script = blocks(SECTIONS["Retrain every night"], "sh")
    Path("first.sh").write_text(f"set -e\n{first}")
    Path("nightly.sh").write_text(script)
    Path("bin").mkdir()
    command = Path("bin/hf-bert4rec")
    small = "--hidden_size 8 --num_attention_heads 2 --intermediate_size 16 --max_length 8 --num_train_epochs 2"
    command.write_text(f'#!/bin/sh\n{sys.executable} -m hf_bert4rec.cli.main "$@" $EXTRA\n')
    command.chmod(0o755)
    root = str(Path(hf_bert4rec.__file__).parents[1])
    environment = os.environ | {"PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}", "PYTHONPATH": root}

    def run_script(words, extra):
        return subprocess.run(words, env=environment | {"EXTRA": extra}).returncode

    assert run_script(["sh", "first.sh"], f"--disable_tqdm true {small}") == 0
    assert Path("runs/current").resolve() == Path("runs/first/model").resolve()
    log = Path("until-yesterday.csv")
    log.write_text(log.read_text().removesuffix("\n"))
    assert run_script(["sh", "nightly.sh"], "--tolerance -1") == 1
    assert Path("runs/current").resolve() == Path("runs/first/model").resolve()
    lines = len(log.read_text().splitlines())
    assert lines == 1 + len(names["log"])
    (rejected,) = Path("runs").glob("20*-*")
    assert run_script(["sh", "nightly.sh"], "") == 1  # there is no today.csv
    for wrong in ("", "item,user,timestamp\ntea-1,u1,2026-03-01\n"):  # a failed export, another order of columns
        Path("today.csv").write_text(wrong)
        assert run_script(["sh", "nightly.sh"], "--tolerance 1") == 1
    assert len(log.read_text().splitlines()) == lines
    Path("today.csv").write_text("user,item,timestamp\n")
    assert run_script(["sh", "nightly.sh"], "") == 0  # nothing was bought
    assert [*Path("runs").glob("20*-*")] == [rejected]
    Path("today.csv").write_text("user,item,timestamp\nu1,tea-1,2026-03-01\nu2,tea-2,2026-03-01\nu3,tea-2,2026-03-01")
    assert run_script(["sh", "nightly.sh"], "--tolerance 1") == 0
    new = Path("runs/current").resolve()
    assert re.fullmatch(r"20\d\d-\d\d-\d\d-\d{6}", new.parent.name)  # not the folder of the rejected model
    assert new.parent.name != rejected.name
    assert [(folder / "today.csv").exists() for folder in (rejected, new.parent)] == [True, True]
    assert hf_bert4rec.pipeline(new)([["tea-1"]])[0][0]["title"]


def check_changes(names, printed):
    assert len(names["old_lists"]) == len(names["new_lists"]) == 40
    assert names["gain"].low <= names["gain"].mean <= names["gain"].high


def check_comparison(names, printed):
    assert set(names["scores"]) == {"popularity", "markov_chain", "ease", "bert4rec"}
    assert 0 < names["scores"]["popularity"] < names["scores"]["markov_chain"] <= 1
    assert names["scores"]["bert4rec"] > names["scores"]["popularity"]


def check_other_library(names, printed):
    model = hf_bert4rec.BASELINES["popularity"](names["histories"]["train"], len(names["tokenizer"]))
    expected = names["evaluate"](model, names["tokenizer"], names["test"])["eval_ndcg@10"]
    assert names["ndcg_gains"](names["theirs"], 10).mean() == pytest.approx(expected)


def check_grid(names, printed):
    results = names["results"]
    assert len(results.drop_duplicates(["hidden_size", "learning_rate"])) == 4
    best = results.loc[results["ndcg@10"].idxmax()]
    assert printed.splitlines()[1].split()[:2] == [f"{best['hidden_size']:.0f}", f"{best['learning_rate']:.3f}"]
    assert results["ndcg@10"].nunique() > 1


def check_metric(names, printed):
    model, rows = names["recommender"].model, names["histories"]["test"]
    ours = names["evaluate"](model, names["tokenizer"], rows)
    assert ours["eval_hr@1"] <= names["metrics"]["eval_hr@3"] <= ours["eval_hr@5"]
    assert 1 <= names["metrics"]["eval_median_rank"] <= 30


def check_loss(names, printed):
    assert names["trainer"].model.config.loss == "margin"
    assert names["trainer"].evaluate()["eval_ndcg@10"] > 0.15  # a random order


def check_split(names, printed):
    split = names["frequent_customers"](names["interactions"], names["tokenizer"])
    lengths = names["interactions"].to_pandas()["user"].value_counts()
    assert set(split["test"]["user"][:]) == set(lengths.index[lengths >= 8])
    assert len(split["train"]) == 40
    assert sum(split["train"]["length"]) == len(names["interactions"]) - len(split["test"])


def check_model(names, printed):
    model = names["trainer"].model
    assert not model.lm_head.bias.any()
    assert ARCHITECTURES["unbiased_bert4rec"].name == "BERT4Rec without item bias"
    assert names["trainer"].evaluate()["eval_ndcg@10"] > 0.15  # a random order


CHECKS = {
    "One customer": check_customer,
    "Repeat purchases": check_repeats,
    "One click or none": check_one_click,
    "Only items in stock": check_stock,
    "At most n per category": check_categories,
    "Boost new items": check_boost,
    "A more diverse list": check_diversity,
    "Similar items": check_similar,
    "Why an item was recommended": check_reasons,
    "What belongs in a gap": check_gap,
    "Purchases that do not fit": check_surprise,
    "Vectors into a vector database": check_vectors,
    "Serve over HTTP": check_http,
    "100,000 users to Parquet": check_parquet,
    "If a simple model is as good": check_simple,
    "Add products": check_new_products,
    "Train on everything before deployment": check_everything,
    "Retrain every night": check_nightly,
    "What has changed between two models": check_changes,
    "Compare models by name": check_comparison,
    "Compare with a model of another library": check_other_library,
    "A grid of settings": check_grid,
    "Your own metric": check_metric,
    "Your own loss": check_loss,
    "Your own split": check_split,
    "Your own model": check_model,
}


@pytest.mark.parametrize("title", CHECKS)
def test_recipe(title, shop, monkeypatch):
    folder, names = shop
    monkeypatch.chdir(folder)
    for registry, name in ((LOSSES, "margin"), (ARCHITECTURES, "unbiased_bert4rec")):
        monkeypatch.setitem(registry, name, None)  # removed again after the test
        del registry[name]
    names = dict(names)
    printed = run(SECTIONS[title], names)
    CHECKS[title](names, printed)
    assert_same_output(printed, SECTIONS[title])


def test_every_recipe_is_checked():
    assert {title for title, section in SECTIONS.items() if blocks(section)} == set(CHECKS)
