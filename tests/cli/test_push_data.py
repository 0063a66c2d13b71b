"""Histories and the metric, pushed to a Hub and loaded from it by the real clients and commands."""

import re
from pathlib import Path

import datasets
import evaluate
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard, snapshot_download
from transformers import AutoTokenizer

from hf_bert4rec.cli.main import main
from hf_bert4rec.cli.prepare import prepare
from hf_bert4rec.cli.push_data import push_data
from hf_bert4rec.cli.recipe import parse_recipe
from tests.conftest import needs, small_facts
from tests.hub.test_push import ROOT, hf
from tests.hub_server import OWNER, TOKEN, commit_id

NAME = f"{OWNER}/histories"
FILES = {
    "README.md", "data/train.parquet", "data/validation.parquet", "data/test.parquet",
    "tokenizer/items.parquet", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
}  # fmt: skip


@pytest.fixture
def hub(hub, monkeypatch, tmp_path):
    """The Hub, which `datasets` and `evaluate` ask too, from a machine where they have kept nothing."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(evaluate.config, "DOWNLOADED_EVALUATE_PATH", tmp_path / "evaluate")
    return hub


@pytest.fixture
def config(interactions, tmp_path) -> Path:
    """A recipe of one's own log, in which u1 has a history longer than what the model takes."""
    interactions.to_csv(tmp_path / "mine.csv")
    (tmp_path / "titles.csv").write_text("item,title\na,Alpha\nc,Gamma\n")
    options = {"data": str(tmp_path / "mine.csv"), "titles": str(tmp_path / "titles.csv"), "max_length": 2}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**options, "output_dir": str(tmp_path / "run"), "terms": "Ours, CC BY 4.0."}))
    return path


def loaded(tmp_path, name: str = NAME) -> datasets.DatasetDict:
    return load_dataset(name, cache_dir=str(tmp_path / "datasets"))


# ----------------------------------------------------------------------------------------------------- the data


def test_loaded_histories_equal_the_pushed_ones_with_nulls_and_lists(hub, config, tmp_path):
    recipe = parse_recipe([str(config)])
    address = push_data(recipe, NAME, may_share=True)
    assert address == f"{hub.url}/datasets/{NAME}/commit/{commit_id(1)}"
    repository = hub.repositories[f"datasets/{NAME}"]
    assert repository.messages == ["initial commit", "Upload the histories of mine.csv"]
    assert set(repository.files) == FILES
    expected, found = prepare(recipe)[3], loaded(tmp_path)
    assert list(found) == ["train", "validation", "test"]
    for split, rows in expected.items():
        assert found[split].features == rows.features
        assert found[split].to_list() == rows.to_list()
    assert {"labels": None, "history": None}.items() <= found["train"][0].items()
    assert found["test"][0] == {
        "row": 0, "user": "u1", "input_ids": [6, 1], "timestamps": [40, 50], "labels": [-100, 7],
        "history": [3, 4, 5, 6], "length": 2,
    }  # fmt: skip


def test_the_tokenizer_of_the_repository_decodes_the_items(hub, config):
    push_data(parse_recipe([str(config)]), NAME, may_share=True)
    tokenizer = AutoTokenizer.from_pretrained(snapshot_download(NAME, repo_type="dataset") + "/tokenizer")
    assert tokenizer.decode_items([3, 4, 5, 6, 7]) == ["a", "b", "c", "d", "e"]
    assert tokenizer.titles == ["Alpha", None, "Gamma", None, None]
    assert tokenizer.model_max_length == 2


def test_the_python_of_the_card_runs_as_it_is_printed(hub, config, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    push_data(parse_recipe([str(config)]), NAME, may_share=True)
    card = DatasetCard.load(NAME)
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)[0], names)
    assert names["histories"]["test"].num_rows == 3
    assert len(names["tokenizer"]) == 8


@needs("huggingface-hub", "2.0")  # older ones validate cards at huggingface.co only
def test_the_card_is_valid_and_describes_the_data(hub, config):
    push_data(parse_recipe([str(config)]), NAME, may_share=True)
    card = DatasetCard.load(NAME)
    card.validate()
    assert card.data.license_name == "terms-of-the-data"
    assert [row["path"] for row in card.data.configs[0]["data_files"]] == [
        "data/train.parquet", "data/validation.parquet", "data/test.parquet",
    ]  # fmt: skip
    for words in (
        "14 interactions of\n4 users with 5 items, split for training and evaluation.\n",
        "Made from mine.csv by hf-bert4rec.",
        "| train | 5 |\n| validation | 3 |\n| test | 3 |",
        "Protocol: leave-one-out (every user's last item), ranked among all 5 items, history excluded.",
        "max_length: 2",
        "- `user`: raw user ID\n",
        "- `labels`: null in train (the collator makes them); else the token ID of the target at the [MASK]",
        "The token IDs 0 to 2 are the special tokens [PAD], [MASK], [UNK].",
        "The audit found no leaks:\n\n- train: 0 of 5 rows (0.0%) contain an interaction later than",
        "- test: 0 of 3 rows (0.0%) have an input later than the target\n",
        "- test: 3 of 3 rows (100.0%) are of users who are in train too\n",
        "SHA-256 `",
        "Ours, CC BY 4.0.",
    ):
        assert words in card.text, card.text
    assert str(config.parent) not in card.content  # the path of the log is not published


def test_leaks_are_reported_in_the_card(hub, config):
    log = config.parent / "mine.csv"
    log.write_text("user,item,timestamp\n" + "".join(f"u,a,{time}\n" for time in (1, 2, 3, 3)))
    push_data(parse_recipe([str(config)]), NAME, may_share=True)
    text = DatasetCard.load(NAME).text
    assert "- validation: 0 of 1 rows (0.0%) have a target that is in the user's training rows\n" in text
    log.write_text("user,item,timestamp\n" + "".join(f"u,a,{time}\n" for time in (1, 3, 3, 3)))
    push_data(parse_recipe([str(config)]), NAME, may_share=True)
    text = DatasetCard.load(NAME).text
    assert "The audit **found leaks**:" in text
    assert "- validation: 1 of 1 rows (100.0%) have a target that is in the user's training rows (row 0)\n" in text


def test_a_second_push_replaces_the_older_histories(hub, config, tmp_path):
    push_data(parse_recipe([str(config)]), NAME, may_share=True)
    push_data(parse_recipe([str(config), "--validation_in_train=true", "--titles=none"]), NAME, may_share=True)
    assert set(hub.repositories[f"datasets/{NAME}"].files) == FILES - {
        "data/validation.parquet", "tokenizer/items.parquet",
    }  # fmt: skip
    assert list(loaded(tmp_path)) == ["train", "test"]
    assert "validation_in_train: true" in DatasetCard.load(NAME).text


def test_embedded_data_are_pushed_with_their_terms(hub, config):
    options = ["--data=ml-latest-small", "--titles=ml-latest-small", "--terms=none", "--min_user_interactions=500"]
    push_data(parse_recipe([str(config), *options]), NAME)
    files, card = hub.repositories[f"datasets/{NAME}"].files, DatasetCard.load(NAME)
    assert b"The user may redistribute the data set" in files["LICENSE"]
    assert card.data.license_link == "LICENSE"
    assert "MovieLens (GroupLens, University of Minnesota)" in card.text
    assert "min_user_interactions: 500" in card.text


def test_a_token_that_is_passed_is_used(hub, config, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    push_data(parse_recipe([str(config)]), NAME, may_share=True, token=TOKEN)
    assert "tokenizer/tokenizer.json" in hub.repositories[f"datasets/{NAME}"].files


def test_the_license_of_older_data_is_removed(hub, config):
    embedded = ["--data=ml-latest-small", "--titles=ml-latest-small", "--terms=none", "--min_user_interactions=500"]
    push_data(parse_recipe([str(config), *embedded]), NAME)
    push_data(parse_recipe([str(config)]), NAME, may_share=True)
    assert "LICENSE" not in hub.repositories[f"datasets/{NAME}"].files


def test_simultaneous_pushes_are_not_mixed(hub, config):
    push_data(parse_recipe([str(config)]), NAME, may_share=True)
    repository = hub.repositories[f"datasets/{NAME}"]
    hub.meanwhile = lambda: repository.commits.append({**repository.files, "data/train.parquet": b"of others"})
    with pytest.raises(OSError, match="the Hub received another commit in the meantime"):
        push_data(parse_recipe([str(config)]), NAME, may_share=True)
    assert repository.files["data/train.parquet"] == b"of others"


# ----------------------------------------------------------------------------------------------- what is refused


def test_other_data_are_only_pushed_with_permission(hub, config):
    with pytest.raises(
        PermissionError, match=r"mine\.csv is not part of this package.* Terms of the data: Ours, CC BY 4\.0\. Add"
    ):
        push_data(parse_recipe([str(config)]), NAME)
    names = ["--data=ml-latest-small", "--titles=none", f"--item_ids={config}", "--terms=none"]
    with pytest.raises(PermissionError, match=rf"{config.name} is not part of this package"):
        push_data(parse_recipe([str(config), *names]), NAME)
    with pytest.raises(
        PermissionError, match=r"titles\.csv is not part of this package.* No terms of use are recorded\."
    ):
        push_data(parse_recipe([str(config), "--data=ml-latest-small", "--terms=none"]), NAME)
    private = ["--data=ml-latest-small", "--titles=none", f"--history={config}"]
    with pytest.raises(PermissionError, match=rf"{config.name} is not part of this package"):
        push_data(parse_recipe([str(config), *private]), NAME)
    assert hub.requests == []


@pytest.mark.parametrize("words", [[], ["--prefixes", "false"]])
def test_the_rows_of_a_checkpoint_with_prefixes_are_those_of_the_log(hub, config, tmp_path, words):
    push_data(parse_recipe([str(config)]), NAME, may_share=True)
    expected = hub.repositories[f"datasets/{NAME}"].files["data/train.parquet"]
    given = parse_recipe([str(config)]).given | {"prefixes": True, "recommended_settings": True}
    small_facts(recipe=given).save(tmp_path)
    push_data(parse_recipe([str(tmp_path), *words]), NAME, may_share=True)
    pushed = hub.repositories[f"datasets/{NAME}"].files["data/train.parquet"]
    rows = [pq.read_table(pa.BufferReader(file)).num_rows for file in (expected, pushed)]
    assert rows[0] == rows[1]


def test_the_command_requires_permission_and_prints_the_address(hub, config, capsys):
    words = ["push-data", str(config), NAME, "--max_length", "4"]
    with pytest.raises(SystemExit, match=r"^hf-bert4rec push-data: error: .*Add `--i_may_share_this_data` if you are"):
        main(words)
    assert hub.repositories == {}
    main([*words, "--private", "--i_may_share_this_data"])
    assert capsys.readouterr().out.strip() == f"{hub.url}/datasets/{NAME}/commit/{commit_id(1)}"
    assert hub.repositories[f"datasets/{NAME}"].private
    assert "max_length: 4" in DatasetCard.load(NAME).text


def test_a_repository_with_other_data_is_not_changed(hub, config):
    huggingface_hub.create_repo(NAME, repo_type="dataset")
    huggingface_hub.upload_file(
        path_or_fileobj=b"a,b\n", path_in_repo="data/all.csv", repo_id=NAME, repo_type="dataset"
    )
    with pytest.raises(
        FileExistsError, match=r"org/histories is taken: the repository contains other files, such as data/all\.csv"
    ):
        push_data(parse_recipe([str(config)]), NAME, may_share=True)
    assert hub.repositories[f"datasets/{NAME}"].files == {"data/all.csv": b"a,b\n"}


def test_an_interrupted_upload_changes_nothing(hub, config):
    recipe = parse_recipe([str(config)])
    push_data(recipe, NAME, may_share=True)
    before = dict(hub.repositories[f"datasets/{NAME}"].files)
    hub.lose_commits = True
    with pytest.raises(
        ConnectionError, match=r"the connection to the Hub failed.*a commit is made as a whole or not at all"
    ):
        push_data(parse_recipe([str(config), "--max_length=4"]), NAME, may_share=True)
    assert hub.repositories[f"datasets/{NAME}"].files == before


def test_candidates_which_training_rows_lack_are_refused_before_anything_is_read(hub, config):
    with pytest.raises(ValueError, match="Set `--popularity_candidates 0`"):
        push_data(parse_recipe([str(config), "--popularity_candidates=2"]), NAME, may_share=True)
    assert hub.requests == []


# --------------------------------------------------------------------------------------------------- the metric


@needs("evaluate", "0.4.6")
def test_the_line_of_the_page_on_the_hub_pushes_the_metric_and_evaluate_loads_it_from_there(hub, tmp_path):
    page = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    line = re.search(r"^hf (upload your-name/next_item .+)$", page, re.MULTILINE)[1]
    pushed = hf(*line.replace("your-name", OWNER).replace("hf_bert4rec", str(ROOT / "hf_bert4rec")).split())
    assert pushed.returncode == 0, pushed.stderr
    assert set(hub.repositories[f"spaces/{OWNER}/next_item"].files) == {"README.md", "next_item.py"}
    hub.requests.clear()
    metric = evaluate.load(f"{OWNER}/next_item", cache_dir=str(tmp_path))
    assert f"GET /spaces/{OWNER}/next_item/resolve/main/next_item.py" in hub.requests
    # ranks 1, 3 and 12: two of three within 10; DCG 1 and 1 / log2(4); reciprocal ranks 1 and 1 / 3
    assert metric.compute(predictions=[1, 3, 12], k=[1, 10]) == pytest.approx(
        {"hr@1": 1 / 3, "ndcg@1": 1 / 3, "mrr@1": 1 / 3, "hr@10": 2 / 3, "ndcg@10": 1.5 / 3, "mrr@10": 4 / 9}
    )
