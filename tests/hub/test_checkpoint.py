"""Checkpoint folders: parts that do not belong together are refused cheaply, and no pickle is read."""

import errno
import json
import pickle
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

import hf_bert4rec
from hf_bert4rec import item_tokenizer
from hf_bert4rec.hub.checkpoint import (
    check_checkpoint,
    check_folder,
    fetch_checkpoint,
    is_complete,
    is_folder,
    last_complete_checkpoint,
    save_checkpoint,
)
from hf_bert4rec.hub.push import push_checkpoint
from tests.conftest import small_facts


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
    with pytest.raises(
        FileNotFoundError, match=r"found no model\.safetensors.* a pickle can run code\. Convert it to safetensors"
    ):
        load(folder)
    assert not Path("executed").exists()


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_the_auto_classes_refuse_a_pickle_too(folder, tmp_path, monkeypatch, auto):
    with_a_pickle_alone(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"expected weights in model\.safetensors, found none\. A pytorch_model\.bin"):
        auto.from_pretrained(folder)
    assert not Path("executed").exists()


def test_a_pickle_is_read_only_with_use_safetensors_false(folder, model):
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"expected weights in model\.safetensors, found none"):
        type(model).from_pretrained(folder, use_safetensors=None)
    loaded = type(model).from_pretrained(folder, use_safetensors=False)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(OSError, match=r"pytorch_model\.bin") as raised:
        type(model).from_pretrained(folder, use_safetensors=False)
    assert "If you trust it" not in str(raised.value)


def test_another_error_of_loading_keeps_its_words():
    with pytest.raises(OSError, match=r"offline mode|couldn't connect"):
        hf_bert4rec.Bert4RecForMaskedLM.from_pretrained("org/nothing")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"vocab_size": 14},
            r"lm_head\.bias, config.json needs the shape \[14\], but the weight files contain the shape \[13\]",
        ),
        ({"hidden_size": 15}, r"needs the shape .*15.*, but the weight files contain the shape .*12"),
        (
            {"num_hidden_layers": 3},
            r"model\.layers\.2\S+, config.json needs .*, but the weight files contain no such weight",
        ),
        (
            {"num_hidden_layers": 1},
            r"model\.layers\.1\S+, config.json needs no such weight, but the weight files contain the shape",
        ),
        (
            {"prediction_head": False},
            r"prediction_head\.dense\.bias, config.json needs no such weight, .* shape \[12\]",
        ),
        ({"conv_kernel_size": 3}, r"convolution\.weight, config.json needs the shape \[12, 1, 3\], .* no such weight"),
    ],
)
def test_a_config_that_is_not_that_of_the_weights_is_refused(folder, changes, found):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=f"config.json and weights do not belong together.*{found}"):
        hf_bert4rec.pipeline(folder)


def test_an_encoder_without_its_head_is_refused(folder, model):
    model.model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"weight embeddings\.item_embeddings\.weight, config.json needs no such"):
        hf_bert4rec.pipeline(folder)


def test_untied_weights_are_expected_where_the_config_says_so(folder):
    change_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lm_head\.weight, config.json needs the shape \[13, 12\], .* no such weight"):
        check_folder(folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(13, 12)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    check_folder(folder)


def test_a_second_item_table_is_refused_because_it_would_replace_the_first(folder):
    weights = load_file(folder / "model.safetensors")
    for shape in ((13, 12), (5, 5)):
        save_file({**weights, "lm_head.weight": torch.ones(shape)}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"contain lm_head\.weight, but `tie_word_embeddings: true`"):
            hf_bert4rec.pipeline(folder)


def test_both_solutions_for_a_second_item_table_work(folder, model):
    untied = hf_bert4rec.Bert4RecConfig(**model.config.to_dict() | {"tie_word_embeddings": False})
    original = type(model)(untied)
    original.save_pretrained(folder)
    change_config(folder, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="If the model was trained with untied embeddings, set this"):
        check_folder(folder)
    change_config(folder, tie_word_embeddings=False)
    check_folder(folder)
    assert torch.equal(type(model).from_pretrained(folder).lm_head.weight, original.lm_head.weight)
    change_config(folder, tie_word_embeddings=True)
    type(model).from_pretrained(folder).save_pretrained(folder)
    check_folder(folder)


def test_weights_that_were_cut_off_are_refused(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        hf_bert4rec.pipeline(folder)


def test_a_tokenizer_or_titles_of_another_catalog_are_not_pushed(folder):
    pq.write_table(pa.table({"title": ["Alpha", "Beta"]}), folder / "items.parquet")
    with pytest.raises(ValueError, match=r"items\.parquet: expected 10 titles.*found 2"):
        push_checkpoint(folder, "org/name")
    item_tokenizer(list("abc"), max_length=5).save_pretrained(folder)
    with pytest.raises(ValueError, match="model has 13 rows in its item table, the tokenizer has 6 tokens"):
        push_checkpoint(folder, "org/name")


def test_a_repository_that_wants_code_executed_for_its_config_is_refused(folder, tmp_path, monkeypatch):
    change_config(folder, model_type="another", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked: {question}"))
    with pytest.raises(ValueError, match=r"`model_type` in config\.json must be one of .*, found 'another'"):
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
    with pytest.raises(ValueError, match=rf"{file} is not valid .*Download or save the checkpoint again"):
        check_folder(tmp_path)


# ---------------------------------------------------------------------------------------------- hostile checkpoints


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_weights": "other.safetensors"},
        {"attn_implementation": "org/kernel"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"custom_pipelines": {"next-item-recommendation": {"impl": "code.Pipeline"}}},
    ],
)
def test_options_that_load_other_weights_or_code_are_refused(folder, changes):
    other = {name: torch.zeros_like(weight) for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(other, folder / "other.safetensors", metadata={"format": "pt"})
    change_config(folder, **changes)
    with pytest.raises(
        ValueError,
        match=f"the option `{next(iter(changes))}` in config.json makes transformers load unchecked weights or code",
    ):
        hf_bert4rec.pipeline(folder)


@pytest.mark.parametrize("file", ["adapter_config.json", "shard-00000-model-00001-of-00001.safetensors"])
def test_files_that_replace_the_checked_weights_are_refused(folder, file):
    shutil.copy(folder / "model.safetensors", folder / file)
    with pytest.raises(ValueError, match=f"the file {file} makes transformers load unchecked weights or code"):
        hf_bert4rec.pipeline(folder)


@pytest.mark.parametrize(
    "target", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", 5, None]
)
def test_an_index_names_files_of_its_own_folder_only(folder, target):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"lm_head.bias": target}})
    )
    with pytest.raises(ValueError, match="to safetensors files in this folder"):
        hf_bert4rec.pipeline(folder)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"num_hidden_layers": 10**6}, "`num_hidden_layers` in config.json is 1000000, which does not fit the weights"),
        ({"num_labels": 2_000_000}, "`num_labels` in config.json is 2000000, which does not fit the weights"),
        ({"hidden_size": 10**30, "num_attention_heads": 1}, "`hidden_size` in config.json is 1000000"),
        ({"vocab_size": -5}, r"does not describe a model of hf-bert4rec \(.*tokenizer\)`\)\. Download"),
        ({"intermediate_size": "20"}, "does not describe a model"),
        ({"hidden_act": "gleu"}, "does not describe a model"),
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "`model_type` in config.json must be one of bert4rec, .*, found 'bert'",
        ),
        ({"model_type": None}, r"`model_type` in config\.json must be one of .*, found None"),
        ({"model_type": ["bert4rec"]}, r"`model_type` in config\.json must be one of .*, found \['bert4rec'\]"),
        ({"layer_norm_eps": 10**30}, "`layer_norm_eps` in config.json is 1000000"),
        ({"auto_map": 5}, "in config.json, `architectures` must be a list of names, and `auto_map` an object"),
        ({"architectures": "x"}, "in config.json, `architectures` must be a list of names"),
        ({"vocab_size": 10**12}, r"needs the shape \[1000000000000"),
        ({"max_position_embeddings": 10**12}, r"needs the shape \[1000000000000"),
    ],
)
def test_a_config_that_no_model_can_have_is_refused_within_seconds(folder, changes, found):
    change_config(folder, **changes)
    started = time.process_time()
    with pytest.raises(ValueError, match=found):
        hf_bert4rec.pipeline(folder)
    assert time.process_time() - started < 20  # would be minutes or gigabytes


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "run_facts.json"])
@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 100 + "1" + "}" * 100, "[]", '"text"', "null", "\x00"])
def test_json_that_is_deep_or_no_object_is_refused(folder, file, content):
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{file} is not valid"):
        hf_bert4rec.pipeline(folder)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "run_facts.json"])
def test_json_of_a_million_parts_is_refused_before_it_is_parsed(folder, file):
    (folder / file).write_text('{"x": [' + "{}," * 1_000_000 + "1]}")
    with pytest.raises(ValueError, match=rf"{file} is not valid \(more than 1,000,000 lists and objects\)"):
        hf_bert4rec.pipeline(folder)


@pytest.mark.parametrize(("file", "limit"), [("config.json", 2**17), ("run_facts.json", 2**26)])
def test_json_of_many_megabytes_is_refused_before_it_is_read(folder, file, limit):
    (folder / file).write_text(" " * limit + "{}")
    with pytest.raises(ValueError, match=rf"{file} is not valid \(larger than {limit:,} bytes\)"):
        check_folder(folder)


def test_a_header_that_claims_terabytes_is_refused(folder):
    header = json.dumps({"lm_head.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        check_folder(folder)
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        check_folder(folder)


def test_weights_of_whole_numbers_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.bias"] = weights["lm_head.bias"].to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"F16 or BF16 for lm_head\.bias in model\.safetensors, found I"):
        check_folder(folder)


def test_followers_that_are_no_whole_numbers_are_named_with_their_type(folder):
    weights = load_file(folder / "model.safetensors") | {"transition_head.followers": torch.ones(13, 2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"expected the type I32 for transition_head\.followers .*, found F32"):
        check_folder(folder)


def test_a_text_model_is_named_by_its_type(folder):
    change_config(folder, model_type="bert")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "BertTokenizer"}))
    with pytest.raises(ValueError, match=r"`model_type` in config\.json must be one of .*, found 'bert'"):
        check_folder(folder)


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast", "", None, 5])
def test_a_tokenizer_of_another_class_is_refused(folder, kind):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": kind}))
    with pytest.raises(
        ValueError, match=f"expected ItemTokenizer as `tokenizer_class` in tokenizer_config.json, found {kind!r}"
    ):
        check_checkpoint(folder)


@pytest.mark.parametrize("load", [check_checkpoint, hf_bert4rec.pipeline])
@pytest.mark.parametrize("code", [5, None, [], "x"])
def test_a_tokenizer_whose_code_is_no_mapping_is_refused(folder, load, code):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "auto_map": code}))
    with pytest.raises(ValueError, match=r"in tokenizer_config\.json, `architectures` must be a list"):
        load(folder)


@pytest.mark.parametrize("length", [0, 1, -1, 6])
def test_a_tokenizer_of_lengths_that_the_model_cannot_take_is_refused(folder, length):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": length}))
    with pytest.raises(
        ValueError, match=rf"from 2 to 5 \(`max_position_embeddings` of the model\), found {length}\. Set it to 5"
    ):
        check_checkpoint(folder)


# ------------------------------------------------------------------------------------------------- names and disks


def test_a_local_folder_of_the_owners_name_does_not_shadow_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice").mkdir()
    assert not is_folder("alice/bert4rec-mine")
    (tmp_path / "alice" / "bert4rec-mine").mkdir()
    assert is_folder("alice/bert4rec-mine")


@pytest.mark.parametrize("name", [None, 5])
def test_a_checkpoint_that_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match=f"Expected the path of a checkpoint folder or a Hub ID .*, found {name}"):
        fetch_checkpoint(name)


@pytest.mark.parametrize("name", ["nothing", "runs/mine/model", "/nothing/here", "./runs/mine", "../model", "a b/c"])
def test_a_path_without_a_folder_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{name}: found no such folder. Pass a checkpoint folder or a Hub"):
        is_folder(name)


@pytest.mark.parametrize("part", ["model", "tokenizer"])
@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_reported_in_one_sentence_and_the_older_checkpoint_stays(
    folder, model, tokenizer, monkeypatch, part, full
):
    def save_pretrained(*args, **kwargs):
        raise full

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    torch.nn.init.ones_(model.lm_head.bias)
    monkeypatch.setattr(type({"model": model, "tokenizer": tokenizer}[part]), "save_pretrained", save_pretrained)
    with pytest.raises(OSError, match=rf"^{folder}: the disk is full\. Free some space, then try again\.$"):
        save_checkpoint(folder, model, tokenizer, small_facts(), {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    folder.rename(folder.with_suffix(".replaced"))  # a kill between the renames of a save
    with pytest.raises(OSError, match="the disk is full"):
        save_checkpoint(folder, model, tokenizer, small_facts(), {})
    assert (folder / "model.safetensors").exists()


# -------------------------------------------------------------------------------------------- the Trainer's checkpoints


@pytest.fixture
def trainer_checkpoint(tmp_path, model):
    """`save(step)` writes a checkpoint with the files that the Trainer writes."""

    def save(step: int) -> Path:
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        model.save_pretrained(checkpoint)
        for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"step": torch.tensor(step)}, checkpoint / file)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        return checkpoint

    return save


def test_the_newest_complete_checkpoint_is_found_by_its_number(trainer_checkpoint, tmp_path):
    assert last_complete_checkpoint(tmp_path / "run") is None
    for step in (20, 100, 3):
        trainer_checkpoint(step)
    (tmp_path / "run" / "checkpoint-best").mkdir()
    (tmp_path / "run" / "checkpoint-200x").mkdir()
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-100"


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["gone", "empty", "half"])
def test_a_checkpoint_without_a_readable_file_is_passed_over(trainer_checkpoint, tmp_path, file, damage):
    older, newer = trainer_checkpoint(1), trainer_checkpoint(2)
    content = (newer / file).read_bytes()
    (newer / file).write_bytes(content[: {"gone": 0, "empty": 0, "half": len(content) // 2}[damage]])
    if damage == "gone":
        (newer / file).unlink()
    assert not is_complete(newer)
    assert last_complete_checkpoint(tmp_path / "run") == older


def test_a_checkpoint_with_a_damaged_projection_is_passed_over(trainer_checkpoint, tmp_path):
    older, newer = trainer_checkpoint(1), trainer_checkpoint(2)
    save_file({"projection": torch.ones(2, 3)}, older / "item_features.safetensors")
    assert is_complete(older)
    (newer / "item_features.safetensors").write_bytes(b"damaged")
    assert not is_complete(newer)
    assert last_complete_checkpoint(tmp_path / "run") == older


def test_a_checkpoint_of_several_processes_has_a_random_state_for_each(trainer_checkpoint):
    checkpoint = trainer_checkpoint(1)
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    assert is_complete(checkpoint)
    (checkpoint / "rng_state_1.pth").write_bytes(b"")
    assert not is_complete(checkpoint)
