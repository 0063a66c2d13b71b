"""scripts/benchmark.py: its measurements, tables and plots."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import load_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"
HARNESS = {"peer", "version", "torch", "what", "data", "hidden", "layers", "heads", "length", "batch", "mask_prob",
           "peak_rss_gb", "threads"}  # fmt: skip


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmark")


@pytest.fixture
def log(tmp_path) -> str:
    lines = [f"{user} {1 + (user * 7 + t) % 40}" for user in range(60) for t in range(3 + user % 9)]
    (tmp_path / "tiny.txt").write_text("\n".join(lines))
    return str(tmp_path / "tiny.txt")


def measure(*options) -> dict:
    run = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads([line for line in run.stdout.splitlines() if line.startswith('{"peer"')][-1])


def test_training_has_the_fields_of_the_other_harnesses(log):
    line = measure("train", "--data", log, "--length", "8", "--batch", "16", "--steps", "2", "--hidden", "8",
                   "--loss", "softmax", "--max-gb", "8")  # fmt: skip
    timing = {"seconds_per_step", "cpu_seconds_per_step", "items_per_second", "seconds_to_first_step", "steps"}
    assert set(line) >= HARNESS | timing | {"steps_per_epoch", "loss"}
    assert (line["data"], line["loss"], line["steps"], line["steps_per_epoch"]) == ("tiny", "softmax", 2, 5)
    assert line["before_gb"] <= line["estimated_peak_gb"] < line["before_gb"] + 0.01
    assert line["before_gb"] < line["training_peak_gb"] <= line["peak_rss_gb"]
    assert (line["rows"], line["longest"], line["scored_share"]) == (43, 8, 0.2)


def test_recommending_has_the_fields_of_the_other_harnesses(log):
    line = measure("recommend", "--data", log, "--length", "8", "--users", "20", "--k", "3", "--hidden", "8")
    assert set(line) >= HARNESS | {"users_per_second", "users_per_cpu_second", "users", "k", "includes"}
    assert (line["users"], line["k"]) == (20, 3)


def test_evaluating_counts_users_per_second(log):
    line = measure("evaluate", "--data", log, "--length", "8", "--users", "20", "--hidden", "8", "--batch", "7")
    assert set(line) >= HARNESS | {"users_per_second", "seconds", "users", "includes"}
    assert line["users"] == 20


def test_a_request_is_timed_with_a_saved_recommender():
    checkpoint = SCRIPT.parents[1] / "model_cards" / "bert4rec-ml1m"
    options = ["latency", str(checkpoint), "--requests", "5", "--length", "3"]
    run = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=300)
    line = json.loads(run.stdout)
    assert (line["items"], line["hidden"], line["length"], line["requests"]) == (3416, 128, 3, 5)
    assert 0 < line["cpu_ms_median"] <= line["cpu_ms_p99"]


def test_synthetic_histories_contain_every_item_and_follow_zipfs_law(benchmark):
    table = benchmark.draw_histories(items=100, users=500, length=20)
    assert table["user"].value_counts().field("counts").to_pylist() == [20] * 500
    counts = dict(zip(*(table["item"].value_counts().field(i).to_pylist() for i in range(2)), strict=True))
    assert len(counts) == 100
    first, tenth = ((9_900 / 5.187) / rank + 1 for rank in (1, 10))  # the 100th harmonic number is 5.187
    assert counts["0"] == pytest.approx(first, rel=0.1)
    assert counts["9"] == pytest.approx(tenth, rel=0.25)


def line(peer, **changes) -> dict:
    setting = {"what": "train", "data": "d", "length": 50, "threads": 1, "hidden": 64, "batch": 8, "peak_rss_gb": 2.0}
    return {"peer": peer, **setting, **changes}


def test_the_table_has_one_row_per_peer_with_medians_and_ratios_to_ours(benchmark):
    lines = [
        *(line("hf-bert4rec", items_per_second=n) for n in (900, 1000, 5000)),
        line("slow", items_per_second=100, peak_rss_gb=4.0),
        line("fails", error="out of memory"),
    ]
    assert benchmark.format_tables(lines).splitlines() == [
        "",
        "**train, d**, length 50, hidden 64, 1 thread",
        "",
        "| | batch | items/s | ours / this | peak GB | ours / this |",
        "|---|---:|---:|---:|---:|---:|",
        "| hf-bert4rec | 8 | 1,000 | 1.0 × | 2.00 | 1.00 × |",
        "| slow | 8 | 100 | 10.0 × | 4.00 | 0.50 × |",
        "| fails | 8 | out of memory | | 2.0 | |",
    ]


def test_the_table_compares_equal_settings(benchmark):
    lines = [
        line("hf-bert4rec", items_per_second=4000, hidden=8),
        line("hf-bert4rec", items_per_second=9000, loss="bce"),
        line("hf-bert4rec", items_per_second=2000, bf16=True),
        line("hf-bert4rec", items_per_second=1000),
        line("hf-bert4rec", items_per_second=7000, batch=32),
        line("other", items_per_second=100),
        line("other", items_per_second=100, hidden=8),
        line("other", items_per_second=100, batch=32),
    ]
    rows = [row.split(" | ") for row in benchmark.format_tables(lines).splitlines() if row.startswith("| other")]
    assert [row[3] for row in rows] == ["40.0 ×", "10.0 ×", "70.0 ×"]
    assert "| hf-bert4rec bce | 8 | 9,000 | 0.1 × |" in benchmark.format_tables(lines)
    flex = line("hf-bert4rec", items_per_second=1, attention="flex_attention", compile=True)
    assert "| hf-bert4rec flex_attention compile | 8 | 1 | 1000.0 × |" in benchmark.format_tables([*lines, flex])


def test_the_table_excludes_other_work_on_the_core(benchmark):
    lines = [
        line("hf-bert4rec", items_per_second=100, seconds_per_step=2.0, cpu_seconds_per_step=0.5),
        line("both", items_per_second=100, seconds_per_step=2.0, cpu_seconds_per_step=0.5, threads=2),
        line("hf-bert4rec", what="recommend", users_per_second=10, users_per_cpu_second=30),
    ]
    rows = [row.split(" | ")[2] for row in benchmark.format_tables(lines).splitlines() if "| 8 |" in row]
    assert rows == ["400", "100", "30"]


def test_the_plot_fits_the_exponent_of_a_power_law(benchmark, tmp_path):
    lines = [
        {**line("hf-bert4rec", data=data, length=n), "axis": axis, "seconds_per_step": seconds}
        for axis, data, n, seconds in [
            *(("length", "synthetic-10k", n, 1e-3 * n**2) for n in (50, 200, 800)),
            *(("catalogue", name, 50, 2.0 * size) for name, size in (("synthetic-10k", 1e4), ("synthetic-1m", 1e6))),
        ]
    ]
    fitted = benchmark.plot(lines, str(tmp_path / "plot.png"))
    assert "| length, softmax | 2.00 | 2.00, 2.00, 2.00 |" in fitted
    assert "| catalogue, softmax | 1.00 | 2.00, 2.00 |" in fitted
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_operations_per_item_equal_a_count_by_hand(benchmark):
    args = SimpleNamespace(hidden=4, layers=2, mask_prob=0.5)
    first = 4 * 32 + 4 * 3 * 4 + 256  # projections, attention over 3, feed-forward
    last = 2 * 32 + 0.5 * (2 * 32 + 4 * 3 * 4 + 256 + 32 + 2 * 10 * 4)
    lengths = np.array([3, 3])
    assert benchmark.count_operations(args, 10, lengths) == pytest.approx(3 * (first + last))


def test_the_table_says_that_it_uses_processor_seconds(benchmark):
    with_clock = line("hf-bert4rec", items_per_second=100, seconds_per_step=2.0, cpu_seconds_per_step=0.5)
    assert "1 thread, by processor seconds" in benchmark.format_tables([with_clock])
    assert "processor" not in benchmark.format_tables([{**with_clock, "threads": 2}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train", "--data", "nothing.txt"], r"nothing\.txt"),
        (["table", "nothing.jsonl"], r"nothing\.jsonl"),
        (["train", "--data", "nothing.txt", "--device", "cuda"], "`--device cuda` needs a GPU"),
    ],
)
def test_errors_of_the_user_are_one_sentence(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *options])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    shown = capsys.readouterr().err or f"{stopped.value}\n"
    assert re.fullmatch(f"benchmark\\.py: error: .*{message}.*\n", shown)
