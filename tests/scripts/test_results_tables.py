"""scripts/results_tables.py: the tables of the pages are current, and so are the numbers in their prose."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import load_script

ROOT = Path(__file__).parents[2]
TABLE = re.compile(r"<!-- table: \S+ -->.*?<!-- end -->", re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)


@pytest.fixture(scope="module")
def tables():
    return load_script("results_tables")


def test_pages_and_reports_are_current(tables):
    files = tables.current_files()
    assert {str(path.relative_to(ROOT)) for path, text in files.items() if path.read_text("utf-8") != text} == set()
    assert {path.name for path in files} > {"README.md", "results.md", "performance.md", "comparison-ml-1m.md"}


def test_each_table_is_on_a_page(tables):
    text = "".join((ROOT / page).read_text("utf-8") for page in tables.PAGES)
    assert set(re.findall(r"<!-- table: (\S+) -->", text)) == {*tables.TABLES}


def test_check_fails_if_a_page_is_not_current(tables, tmp_path, monkeypatch, capsys):
    pages = ("page.md",)
    (tmp_path / "page.md").write_text("a\n<!-- table: data -->\nold\n<!-- end -->\nb\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGES", pages)
    monkeypatch.setattr(tables, "load_comparison", lambda data: None)
    monkeypatch.setattr(tables, "format_report", lambda summary: "report")
    kept = tables.RESULTS
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "data.yaml").write_text((kept / "data.yaml").read_text())
    (tmp_path / "results" / "comparison-x.json").write_text("{}")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["results_tables.py", "--check"])
    with pytest.raises(SystemExit, match=r"page\.md, results/comparison-x\.md: not current"):
        tables.main()
    assert "old" in (tmp_path / "page.md").read_text()
    monkeypatch.setattr("sys.argv", ["results_tables.py"])
    tables.main()
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("a\n<!-- table: data -->\n\n| data | users |") and page.endswith("|\n\n<!-- end -->\nb\n")
    monkeypatch.setattr("sys.argv", ["results_tables.py", "--check"])
    tables.main()
    assert "All tables are current." in capsys.readouterr().out


def test_an_unknown_table_is_named(tables):
    with pytest.raises(ValueError, match=r"Unknown table 'none'\. Use readme, "):
        tables.write_tables("<!-- table: none -->\n<!-- end -->")


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/performance.md"])
def test_scores_in_prose_are_in_a_table_of_the_page(page):
    text = (ROOT / page).read_text("utf-8")
    shown = " ".join(TABLE.findall(text))
    if page == "README.md":  # it also quotes the tables of the page that it links to
        shown += " ".join(TABLE.findall((ROOT / "docs/results.md").read_text("utf-8")))
    prose = CODE.sub("", TABLE.sub("", text))
    assert [number for number in re.findall(r"(?<![\d.])0\.\d{3,}", prose) if number not in shown] == []


def test_scores_of_the_summary_are_in_the_log():
    summary, log = (ROOT / "docs" / "experiments.md").read_text("utf-8").split("\n## 2026", 1)
    numbers = re.findall(r"(?<![\d.])0\.\d{3,}", summary)
    assert len(numbers) > 20
    assert [number for number in numbers if number not in log] == []


def test_published_results_name_source_and_known_data(tables):
    published = tables.load_yaml("published")
    data = {*tables.load_yaml("data"), "ml-20m"}
    for row in published["full_ranking"] + published["popularity_sampled"]:
        assert {"authors", "place", "url"} <= {*published["sources"][row["source"]]}
        assert row["data"] in data


@pytest.mark.parametrize(
    ("card", "data"),
    [("bert4rec-ml1m", "ml-1m"), ("bert4rec-beauty", "beauty"), ("bert4rec-beauty-5core", "beauty-5core")],
)
def test_results_agree_with_the_facts_of_the_released_models(tables, card, data):
    facts = json.loads((ROOT / "model_cards" / card / "run_facts.json").read_text("utf-8"))
    sizes = tables.load_yaml("data")[data]
    assert [facts["data"][name] for name in ("users", "items", "interactions")] == [
        sizes[name] for name in ("users", "items", "actions")
    ]
    runs = [run["test"] for run in tables.find_runs(data, "test") if run["model"] == "BERT4Rec"]
    (found,) = runs or [tables.load_comparison(data)["models"]["BERT4Rec"]["metrics"]]
    released = facts["results"]["test"]["BERT4Rec"]
    assert {name: round(released[name], 4) for name in ("hr@10", "ndcg@10")} == {
        name: round(found[name], 4) for name in ("hr@10", "ndcg@10")
    }


@pytest.mark.parametrize(
    ("line", "speed"),
    [
        ({"what": "train", "threads": 1, "seconds_per_step": 2, "cpu_seconds_per_step": 1, "items_per_second": 5}, 10),
        ({"what": "train", "threads": 2, "seconds_per_step": 2, "cpu_seconds_per_step": 1, "items_per_second": 5}, 5),
        ({"what": "train", "threads": 1, "device": "cuda", "items_per_second": 5}, 5),
        ({"what": "recommend", "threads": 1, "users_per_second": 3, "users_per_cpu_second": 4}, 4),
    ],
)
def test_speed_on_one_thread_is_by_processor_time(tables, line, speed):
    assert tables.speed(line) == speed


def test_a_comparison_is_plotted_from_its_numbers(tmp_path):
    load_script("plot_comparison").plot(str(ROOT / "scripts/results/comparison-ml-1m.json"), str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_counts_the_logs_of_the_defaults():
    rows = [json.loads(line) for line in (ROOT / "scripts/results/any-log.jsonl").read_text("utf-8").splitlines()]
    readme, page = (" ".join((ROOT / name).read_text("utf-8").split()) for name in ("README.md", "docs/results.md"))
    scores = {row["log"]: row["ndcg@10"] for row in rows}
    sasrec = [log for log, of in scores.items() if of["SASRec"] > of["BERT4Rec"]]
    found = [
        (row["log"], other, of["mean"]) for row in rows for other, of in row["differences"].items() if of["p"] < 0.05
    ]
    better = [(log, other) for log, other, mean in found if mean > 0]
    simple = {log: of.keys() - {"BERT4Rec", "SASRec"} for log, of in scores.items()}
    above_all = [log for log, others in simple.items() if all((log, other) in better for other in others)]
    worse = [(log, other) for log, other, mean in found if mean < 0]
    assert worse == [("two-items", "Popularity")]
    assert f"On [{len(rows)} logs](docs/results.md#the-defaults-on-other-logs)" in readme
    level = len(rows) - len(above_all) - len(worse)
    assert f"every simple model on {len(above_all)}, about as good as the best on {level}, and significantly" in readme
    assert f"SASRec had a higher score on {len(sasrec)}, " in readme
    assert f"BERT4Rec is significantly worse than another model on one of the {len(rows)} logs: " in page
    assert "popularity on `two-items`, by 0.0051." in page
    all_models = [log for log in above_all if (log, "SASRec") in better]
    count = f"better than every simple model on {len(above_all)} of the logs, and than SASRec too on three:"
    assert f"{count} {', '.join(f'`{log}`' for log in all_models[:-1])} and `{all_models[-1]}`" in page
    _, higher, above = re.split("SASRec has a higher score than|Compared with the simple models alone", page)
    higher, significant = higher.split("None of these differences is significant")
    assert set(re.findall(r"`([\w-]+)`", higher)) == set(sasrec)
    assert set(re.findall(r"`([\w-]+)`", significant)) == {log for log, other in better if other == "SASRec"}
    assert set(re.findall(r"`([\w-]+)`", above.split(" - ")[0])) == set(above_all)
