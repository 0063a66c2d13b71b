"""The script that records runs with several seeds, and writes their mean on a card."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_bert4rec.hub.run_facts import DataFacts, RunFacts
from tests.conftest import load_script, small_facts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seeds():
    return load_script("seeds")


def save_run(folder: Path, seed: int, ndcg: float, sha256: str = "abc") -> Path:
    folder.mkdir()
    row = {"BERT4Rec": {"ndcg@10": ndcg}}
    small_facts(
        data=DataFacts(name="log.csv", items=10, sha256=sha256),
        recipe={"seed": seed},
        results={"validation": row, "test": row},
        intervals={"test": {"BERT4Rec": (0.1, 0.2)}},
    ).save(folder)
    return folder


def test_the_card_has_the_mean_over_the_recorded_runs(seeds, tmp_path):
    runs = [save_run(tmp_path / str(seed), seed, ndcg) for seed, ndcg in ((1, 0.1), (2, 0.2), (3, 0.3))]
    file = tmp_path / "seeds.jsonl"
    seeds.main(["record", str(file), str(runs[0]), str(runs[1])])
    seeds.main(["record", str(file), str(runs[2])])
    assert [json.loads(line)["seed"] for line in file.read_text().splitlines()] == [1, 2, 3]
    seeds.main(["card", str(file), str(runs[1])])
    assert "over the seeds 2, 1, 3: NDCG@10 0.2000 ± 0.1000." in ModelCard.load(runs[1] / "README.md").text
    assert RunFacts.load(runs[1]).other_seeds["test"] == {"1": {"ndcg@10": 0.1}, "3": {"ndcg@10": 0.3}}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            {"seed": 2, "sha256": "other"},
            "the checksum of the data is 'other', but that of the recorded run with seed 1 is 'abc'",
        ),
        ({"seed": 1}, "with seed 1"),
    ],
)
def test_runs_that_cannot_be_averaged_are_refused_and_nothing_is_written(seeds, tmp_path, run, message, capsys):
    file = tmp_path / "seeds.jsonl"
    seeds.main(["record", str(file), str(save_run(tmp_path / "a", 1, 0.1))])
    before = file.read_text()
    other = save_run(tmp_path / "b", ndcg=0.2, **run)
    with pytest.raises(SystemExit) as stopped:
        seeds.main(["record", str(file), str(other)])
    assert message in capsys.readouterr().err + str(stopped.value)
    assert file.read_text() == before
    if run["seed"] == 2:
        with pytest.raises(SystemExit):
            seeds.main(["card", str(file), str(other)])
        assert not (other / "README.md").exists()


def test_runs_without_test_results_and_a_file_without_runs_are_refused(seeds, tmp_path):
    run = save_run(tmp_path / "a", 1, 0.1)
    with pytest.raises(SystemExit, match=r"does not exist or has no runs\. Run"):
        seeds.main(["card", str(tmp_path / "seeds.jsonl"), str(run)])
    facts = RunFacts.load(run)
    del facts.results["test"]
    facts.save(run)
    with pytest.raises(SystemExit, match="found no results of the test split"):
        seeds.main(["record", str(tmp_path / "seeds.jsonl"), str(run)])


@pytest.mark.parametrize(
    ("runs", "release"), [("ml-1m-128", "ml1m"), ("beauty", "beauty"), ("beauty-5core", "beauty-5core")]
)
def test_the_cards_of_the_releases_have_the_recorded_seeds(seeds, tmp_path, runs, release):
    shutil.copytree(ROOT / "model_cards" / f"bert4rec-{release}", tmp_path / "model")
    seeds.main(["card", str(ROOT / "scripts" / "results" / f"seeds-{runs}.jsonl"), str(tmp_path / "model")])
    for name in ("README.md", "run_facts.json"):
        assert (tmp_path / "model" / name).read_text() == (
            ROOT / "model_cards" / f"bert4rec-{release}" / name
        ).read_text()
