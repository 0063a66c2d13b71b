"""Checkpoint folders: what does not belong together is refused, and no pickle is read."""

import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

import hf_bert4rec
from hf_bert4rec import item_tokenizer
from hf_bert4rec.hub.checkpoint import check_checkpoint, check_folder
from hf_bert4rec.hub.push import push_checkpoint


@pytest.fixture
def folder(tmp_path, model, tokenizer) -> Path:
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class Executed:
    """A pickle of this runs code when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def with_a_pickle_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Executed()))


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_whole_checkpoint_is_accepted_also_in_shards(folder, model):
    check_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="3KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    check_checkpoint(folder)
    next(folder.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"found no model-00002-of-\d+.safetensors"):
        check_folder(folder)


@pytest.mark.parametrize("load", [hf_bert4rec.pipeline, lambda folder: push_checkpoint(folder, "org/name")])
def test_a_pickle_of_weights_is_refused_with_the_reason_and_not_read(folder, tmp_path, monkeypatch, load):
    with_a_pickle_alone(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"found no model\.safetensors.* it is a pickle, which can run code"):
        load(folder)
    assert not Path("executed").exists()


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_the_auto_classes_refuse_a_pickle_too(folder, tmp_path, monkeypatch, auto):
    with_a_pickle_alone(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"expected the weights in model\.safetensors, found none\. A pytorch_model\.bin"):
        auto.from_pretrained(folder)
    assert not Path("executed").exists()


def test_another_error_of_loading_keeps_its_words():
    with pytest.raises(OSError, match=r"offline mode|couldn't connect"):
        hf_bert4rec.Bert4RecForMaskedLM.from_pretrained("org/nothing")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"vocab_size": 14}, r"expected shape \[14\] for lm_head\.bias, found \[13\]"),
        ({"hidden_size": 15}, r"expected shape .*15.* for \S+, found .*12"),
        ({"num_hidden_layers": 3}, r"expected shape \S+ for model\.layers\.2\S+, found none"),
        ({"num_hidden_layers": 1}, r"expected shape none for model\.layers\.1\S+, found"),
        ({"prediction_head": False}, r"expected shape none for prediction_head\.dense\.bias, found \[12\]"),
        ({"conv_kernel_size": 3}, r"expected shape \[12, 1, 3\] for \S+convolution\.weight, found none"),
    ],
)
def test_a_config_that_is_not_that_of_the_weights_is_refused(folder, changes, found):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=f"config.json and weights do not belong together: {found}"):
        hf_bert4rec.pipeline(folder)


def test_an_encoder_without_its_head_is_refused(folder, model):
    model.model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"shape none for embeddings\.item_embeddings\.weight, found \[13, 12\]"):
        hf_bert4rec.pipeline(folder)


def test_untied_weights_are_expected_where_the_config_says_so(folder):
    change_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"expected shape \[13, 12\] for lm_head\.weight, found none"):
        check_folder(folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(13, 12)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    check_folder(folder)


def test_weights_that_were_cut_off_are_refused(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        hf_bert4rec.pipeline(folder)


def test_a_tokenizer_or_titles_of_another_catalogue_are_not_pushed(folder):
    pq.write_table(pa.table({"title": ["Alpha", "Beta"]}), folder / "items.parquet")
    with pytest.raises(ValueError, match=r"items\.parquet: expected 10 titles.*found 2"):
        push_checkpoint(folder, "org/name")
    item_tokenizer(list("abc"), max_length=5).save_pretrained(folder)
    with pytest.raises(ValueError, match="model has 13 rows in its item table, the tokenizer 6 tokens"):
        push_checkpoint(folder, "org/name")


def test_a_repository_that_wants_code_executed_for_its_config_is_refused(folder, tmp_path, monkeypatch):
    change_config(folder, model_type="another", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked: {question}"))
    with pytest.raises(ValueError, match="custom code"):
        hf_bert4rec.pipeline(folder)
    assert not Path("executed").exists()


def test_the_folder_of_a_run_points_to_its_checkpoint(tmp_path, model, tokenizer):
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "runs" / "model")
    with pytest.raises(FileNotFoundError, match=rf"Did you mean {tmp_path}/runs/model\?"):
        check_folder(tmp_path / "runs")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "run_facts.json"])
def test_a_file_that_is_cut_off_is_named(tmp_path, model, tokenizer, file):
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    (tmp_path / "run_facts.json").write_text('{"name": "x"}')
    (tmp_path / file).write_text((tmp_path / file).read_text()[:-3])
    with pytest.raises(ValueError, match=rf"{file} is damaged or cut off .*Load or save it again"):
        check_folder(tmp_path)
