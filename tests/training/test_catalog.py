"""Items are added, removed and renamed without training; a failure leaves the old checkpoint."""

import shutil
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

import hf_bert4rec
from hf_bert4rec import Bert4RecForMaskedLM, ItemTokenizer, add_items, item_tokenizer, load_item_features, remove_items
from hf_bert4rec.cli.main import main
from hf_bert4rec.hub import checkpoint as checkpoint_module
from hf_bert4rec.hub.checkpoint import folder_lock
from tests.conftest import small_config

FEATURES = pd.DataFrame({"item": ["a", "b", "c"], "kind": ["x", "x", "y"], "other": ["x", "y", "y"]})


@pytest.fixture(params=[True, False])
def checkpoint(request, tmp_path):
    """A checkpoint with features, whose item tables are tied, and one without, whose tables are not."""
    torch.manual_seed(0)
    features = load_item_features(FEATURES) if request.param else None
    tokenizer = item_tokenizer(["a", "b", "c"], titles={"a": "Alpha"}, features=features, max_length=6)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6, tie_word_embeddings=request.param))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "note.txt").write_text("kept")
    if features:
        projection = torch.arange(3 * 13.0).reshape(3, 13) / 50
        save_file({"projection": projection}, tmp_path / "model" / "item_features.safetensors")
    return tmp_path / "model"


def load(folder):
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [model.get_input_embeddings().weight, model.lm_head.weight, model.lm_head.bias[:, None]]
    return [it.detach() for it in rows], tokenizer


def test_columns_that_are_no_features_of_the_checkpoint_are_reported(checkpoint, caplog):
    with caplog.at_level("INFO"):
        add_items(
            checkpoint, pd.DataFrame({"item": ["n"], "title": ["N"], "kind": ["x"], "other": ["x"], "brand": ["y"]})
        )
    unused = "'brand'" if load(checkpoint)[1].features else "'kind', 'other', 'brand'"
    assert f"columns that are not features of the checkpoint are not used: {unused}." in caplog.text


def test_new_items_start_from_features_then_from_like_then_from_the_mean(checkpoint, tmp_path):
    (table, outputs, bias), old = load(checkpoint)
    new = pd.DataFrame(
        {
            "item": ["n1", "b", "n2", "n3"],
            "title": ["New", "Beta", None, None],
            "like": ["a|c", None, "a|c", None],
            "kind": ["x", "x", None, None],
            "other": ["y", None, None, None],
        }
    )
    counts = add_items(checkpoint, new, tmp_path / "output")
    described = old.features is not None
    expected = {"features": 1, "like": 1, "mean": 1} if described else {"features": 0, "like": 2, "mean": 1}
    assert counts == expected | {"returned": 0, "titles": 2}
    (new_table, new_outputs, new_bias), tokenizer = load(tmp_path / "output")
    assert tokenizer.items.to_pylist() == ["a", "b", "c", "n1", "n2", "n3"]
    assert tokenizer.titles == ["Alpha", "Beta", None, "New", None, None]
    assert torch.equal(new_table[:6], table)
    assert torch.equal(new_outputs[:6], outputs)
    assert torch.equal(new_bias[:6], bias)
    torch.testing.assert_close(new_table[7], table[[3, 5]].mean(dim=0))
    torch.testing.assert_close(new_bias[7], bias[[3, 5]].mean(dim=0))
    torch.testing.assert_close(new_table[8], table[3:].mean(dim=0))
    assert new_bias[8] == bias[3:].min()
    if described:  # 1, kind x, other y: the values that two items have
        vectors = torch.from_numpy(tokenizer.features.vectors(tokenizer.items)[3:4])
        projected = vectors @ hf_bert4rec.training.item_features.load_projection(tmp_path / "output")
        torch.testing.assert_close(torch.cat([new_table[6], new_bias[6]]), projected[0])
        assert tokenizer.features.items.to_pylist() == ["a", "b", "c", "n1"]
    assert (tmp_path / "output" / "note.txt").read_text() == "kept"
    assert hf_bert4rec.pipeline(tmp_path / "output")([["n1", "a"]], allow=["n2"])[0][0]["item"] == "n2"


def test_a_checkpoint_is_replaced_as_a_whole_or_not_at_all(checkpoint, monkeypatch):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    monkeypatch.setattr(Bert4RecForMaskedLM, "save_pretrained", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        add_items(checkpoint, pd.DataFrame({"item": ["n"]}))
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model"]
    monkeypatch.undo()
    add_items(checkpoint, pd.DataFrame({"item": ["n"]}))
    assert load(checkpoint)[1].items.to_pylist() == ["a", "b", "c", "n"]
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model"]


def test_removed_items_are_read_but_never_recommended_and_can_return(checkpoint, caplog):
    def recommended(**options):
        answer = hf_bert4rec.pipeline(checkpoint)([["b"]], **options)
        return {it["item"] for it in answer[0]}

    before = hf_bert4rec.pipeline(checkpoint)([["b", "a"]], exclude_history=False)
    remove_items(checkpoint, ["a", "b"])
    assert recommended(exclude_history=False) == {"c"}
    assert recommended(allow=["a", "c"]) == {"c"}
    assert not caplog.records  # no unknown IDs
    assert {it["item"]: it["score"] for it in before[0]}["c"] == pytest.approx(
        hf_bert4rec.pipeline(checkpoint)([["b", "a"]])[0][0]["score"]
    )
    assert add_items(checkpoint, pd.DataFrame({"item": ["a"]}))["returned"] == 1
    assert recommended() == {"a", "c"}


def test_the_command(checkpoint, tmp_path, capsys):
    pd.DataFrame({"item": ["n"], "title": ["New"], "like": ["a"]}).to_csv(tmp_path / "new.csv", index=False)
    main(["items", "add", str(checkpoint), str(tmp_path / "new.csv"), "--output", str(tmp_path / "output")])
    main(["items", "remove", str(tmp_path / "output"), "b", "c"])
    assert "Saved in" in capsys.readouterr().out
    main(["recommend", str(tmp_path / "output"), "--history", "a"])
    assert "New" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"has no item 'zz'\. Name only items of the checkpoint"):
        main(["items", "remove", str(tmp_path / "output"), "zz"])


def test_the_card_says_that_the_items_were_changed(checkpoint):
    card = checkpoint / "README.md"
    remove_items(checkpoint, ["a"])
    assert not card.exists()
    card.write_text("# Model\n\nÜber items\n", "utf-8")
    add_items(checkpoint, pd.DataFrame({"item": ["n1", "n2"]}))
    remove_items(checkpoint, ["n1"])
    start, changed = card.read_text("utf-8").split("## Items changed after the training\n")
    assert start == "# Model\n\nÜber items\n\n"
    card.write_text(card.read_text("utf-8") + "\n## By hand\n\nOne more line.\n", "utf-8")
    (checkpoint / "run_facts.json").write_text('{"format_version": 99}')  # of a newer version
    remove_items(checkpoint, ["n1"])
    assert card.read_text("utf-8") == (
        f"# Model\n\nÜber items\n\n## By hand\n\nOne more line.\n\n## Items changed after the training\n{changed}"
    )
    assert "The model has 5 items now. Removed items, which are never recommended: 2." in changed


def test_the_replacement_of_an_existing_output_is_logged(checkpoint, tmp_path, caplog):
    new, output = pd.DataFrame({"item": ["n"]}), tmp_path / "output"
    add_items(checkpoint, new, output)
    assert "will be replaced" not in caplog.text
    remove_items(output, ["a"])  # in place, as asked
    assert "will be replaced" not in caplog.text
    add_items(checkpoint, new, output)
    assert f"{output} exists and will be replaced at the end, unless" in caplog.text
    assert ItemTokenizer.from_pretrained(output).removed == []


def test_one_of_several_title_columns_is_named_as_the_message_says(checkpoint, tmp_path):
    file, output = tmp_path / "new.csv", tmp_path / "output"
    pd.DataFrame({"item": ["n"], "title": ["Right"], "name": ["Wrong"]}).rename(columns={"name": "Title"}).to_csv(
        file, index=False
    )
    words = ["items", "add", str(checkpoint), str(file), "--output", str(output)]
    with pytest.raises(SystemExit, match="`--title title`"):
        main(words)
    main([*words, "--title", "title"])
    assert ItemTokenizer.from_pretrained(output).titles[-1] == "Right"


def test_an_unknown_option_is_an_error(checkpoint):
    with pytest.raises(TypeError, match=r"add_items\(\) got an unexpected keyword argument 'seperator'"):
        add_items(checkpoint, pd.DataFrame({"item": ["n"]}), seperator=";")


def test_options_of_a_text_file(checkpoint, tmp_path):
    (tmp_path / "new.txt").write_text("sku;title\nn;Größe\n", encoding="latin-1")
    options = {"item": "sku", "format": "csv", "separator": ";", "encoding": "latin-1"}
    assert add_items(checkpoint, tmp_path / "new.txt", **options)["titles"] == 1
    tokenizer = ItemTokenizer.from_pretrained(checkpoint)
    assert (tokenizer.items.to_pylist()[-1], tokenizer.titles[-1]) == ("n", "Größe")


def test_invalid_items(checkpoint):
    with pytest.raises(ValueError, match=r"`like` of the new item 'n' has 'zz', .* Use IDs of items"):
        add_items(checkpoint, pd.DataFrame({"item": ["n"], "like": ["a|zz"]}))
    with pytest.raises(ValueError, match="expected one row per item"):
        add_items(checkpoint, pd.DataFrame({"item": ["n", "n"]}))
    with pytest.raises(ValueError, match="All items would be removed"):
        remove_items(checkpoint, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"Found no folder org/name\. .* For a Hub ID, also pass `output`"):
        remove_items("org/name", ["a"])
    with pytest.raises(FileNotFoundError):
        remove_items(checkpoint / "other" / "folder", ["a"])


def test_a_result_that_cannot_be_loaded_does_not_replace_the_checkpoint(checkpoint, monkeypatch):
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.is_file()}
    monkeypatch.setattr(
        ItemTokenizer, "save_pretrained", lambda self, folder: (folder / "tokenizer.json").write_text("{}")
    )
    with pytest.raises(ValueError, match="the tokenizer cannot be loaded"):
        remove_items(checkpoint, ["a"])
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.is_file()} == before


def test_the_old_checkpoint_is_there_until_the_new_one_is(checkpoint, tmp_path, monkeypatch):
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    if not checkpoint_module._exchange(*folders):
        pytest.skip("this system or file system cannot exchange two folders")
    for folder in folders:
        folder.rmdir()
    monkeypatch.setattr(Path, "rename", None)
    remove = shutil.rmtree

    def look(path, **options):
        if path.name == "model.incomplete" and path.exists():
            versions.append([load(folder)[1].items.to_pylist() for folder in (checkpoint, path)])
        remove(path, **options)

    versions = []
    monkeypatch.setattr(shutil, "rmtree", look)
    add_items(checkpoint, pd.DataFrame({"item": ["n"]}))
    assert versions == [[["a", "b", "c", "n"], ["a", "b", "c"]]]
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("outputs", [0, 1])
def test_two_commands_change_a_checkpoint_one_after_the_other(checkpoint, caplog, outputs):
    with folder_lock(checkpoint):
        other = Thread(target=remove_items, args=(checkpoint, ["b"], *[checkpoint] * outputs))
        other.start()
        _, tokenizer = load(checkpoint)
        tokenizer.removed = ["a"]
        tokenizer.save_pretrained(checkpoint)
        other.join(0.2)
        assert other.is_alive()
        assert "model.lock exists. If another command is changing this folder, this command waits" in caplog.text
    other.join()
    assert load(checkpoint)[1].removed == ["a", "b"]
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model"]


def test_a_kill_between_two_renames_loses_nothing(checkpoint, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "_exchange", lambda *folders: False)  # as on a system without it
    rename = Path.rename

    def rename_until_killed(path, target):
        if path.name.endswith(".incomplete"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_until_killed)
    with pytest.raises(KeyboardInterrupt):
        add_items(checkpoint, pd.DataFrame({"item": ["n"]}))
    assert not checkpoint.exists()
    monkeypatch.setattr(Path, "rename", lambda *paths: (rename(*paths), rename(*paths)))  # another process was faster
    (checkpoint.parent / "link").symlink_to(checkpoint)
    assert len(hf_bert4rec.pipeline(checkpoint.parent / "link")([["a"]])[0]) == 2
    monkeypatch.undo()
    (checkpoint.parent / "link").unlink()
    assert len(hf_bert4rec.pipeline(checkpoint)([["a"]])[0]) == 2
    add_items(checkpoint, pd.DataFrame({"item": ["n"]}))
    assert load(checkpoint)[1].items.to_pylist() == ["a", "b", "c", "n"]


def test_other_files_are_never_replaced(checkpoint, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("five years")
    with pytest.raises(ValueError, match=r"is not an earlier result \(it has no config\.json\), so it is not replaced"):
        remove_items(checkpoint, ["a"], tmp_path / "notes")
    for output in (tmp_path, checkpoint / "inside"):
        with pytest.raises(ValueError, match="contains the other"):
            remove_items(checkpoint, ["a"], output)
    for name in ("m.incomplete", "m.replaced"):  # names of the folders that `add_items` writes and removes
        source = checkpoint.rename(checkpoint.with_name(name))
        with pytest.raises(
            ValueError, match=f"would remove .*{name}, because its name is reserved. Rename .*{name} first"
        ):
            remove_items(source, ["a"], source.with_name("m"))
        checkpoint = source.rename(checkpoint)
    assert (tmp_path / "notes" / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()
    remove_items(checkpoint, ["a"], tmp_path / "empty")
    assert load(tmp_path / "empty")[1].removed == ["a"]


def test_a_link_stays_a_link(checkpoint, tmp_path):
    (tmp_path / "current").symlink_to("model")
    for item in "ab":
        remove_items(tmp_path / "current", [item])
    assert (tmp_path / "current").is_symlink()
    assert load(checkpoint)[1].removed == ["a", "b"]


def test_columns_in_another_order_and_half_precision(tmp_path):
    tokenizer = item_tokenizer(["a", "b", "c"], features=load_item_features(FEATURES), max_length=6)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6)).bfloat16()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_file({"projection": torch.eye(3, 13)}, tmp_path / "item_features.safetensors")
    new = pd.DataFrame({"other": ["y"], "kind": ["z"], "item": ["n"]})
    assert add_items(tmp_path, new, tmp_path.parent / "output")["features"] == 1
    (table, *_), _ = load(tmp_path.parent / "output")
    assert table[6, :3].tolist() == [1, 0, 1]  # has features; kind is not x; other is y
    save_file({"projection": torch.eye(3, 7)}, tmp_path / "item_features.safetensors")
    with pytest.raises(ValueError, match=r"shape \(3, 7\), but item_features\.parquet and the model need \(3, 13\)\. "):
        add_items(tmp_path, new)


def test_the_permissions_of_files_are_those_of_new_files(checkpoint, monkeypatch):
    for file in filter(Path.is_file, checkpoint.iterdir()):
        file.chmod(0o444)
    (checkpoint.parent / "new").touch()
    expected = (checkpoint.parent / "new").stat().st_mode
    add_items(checkpoint, pd.DataFrame({"item": ["n"]}))
    assert {file.stat().st_mode for file in checkpoint.iterdir() if file.is_file()} == {expected}

    def chmod(*_, **__):
        raise PermissionError  # as on a file system without permissions

    monkeypatch.setattr(Path, "chmod", chmod)
    add_items(checkpoint, pd.DataFrame({"item": ["m"]}))
    assert load(checkpoint)[1].items.to_pylist()[-2:] == ["n", "m"]
