"""Exported graphs give the answers of the pipeline, with any batch, length, exclusion and number of items."""

import importlib.util
import shutil
import sys

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch

import hf_bert4rec
from hf_bert4rec import Gru4RecConfig, Gru4RecForMaskedLM, SasRecConfig, SasRecForMaskedLM, item_tokenizer
from hf_bert4rec.cli.main import main
from hf_bert4rec.inference.export import OnnxRecommender, export_checkpoint, export_program
from tests.conftest import lively, small_config
from tests.inference.conftest import items_of, scores_of
from tests.inference.test_pipeline import HISTORIES, ITEMS

SIZES = {"vocab_size": 13, "max_position_embeddings": 5, "hidden_size": 12, "num_attention_heads": 3}


def checkpoint(folder, kind):
    """A small model with weights that differ from their small start, for items a to j; c is removed.

    In "recipe" and "sasrec", each item is followed by the next two.
    """
    torch.manual_seed(0)
    tokenizer = item_tokenizer(list(ITEMS), titles={"a": "Alpha"}, max_length=5)
    tokenizer.removed = ["c"]
    model = {
        "bert4rec": lambda: hf_bert4rec.Bert4RecForMaskedLM(small_config(13, 5)),
        "recipe": lambda: hf_bert4rec.Bert4RecForMaskedLM(
            hf_bert4rec.Bert4RecConfig(**SIZES, rope_theta=9, conv_kernel_size=3, repeat_head=True, num_followers=2)
        ),
        "sasrec": lambda: SasRecForMaskedLM(SasRecConfig(**SIZES, num_followers=2)),
        "gru4rec": lambda: Gru4RecForMaskedLM(Gru4RecConfig(**SIZES, num_hidden_layers=2)),
    }[kind]()
    lively(model)
    if model.transition_head is not None:
        rows = torch.arange(3, 13)
        model.transition_head.followers[3:] = torch.stack([3 + (rows - 2) % 10, 3 + (rows - 1) % 10], dim=1)
        model.transition_head.counts[3:], model.transition_head.totals[3:] = torch.tensor([9, 4]), 15
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


NEEDS_LOOPS = pytest.mark.skipif(
    importlib.util.find_spec("torch.export._patches") is None, reason="exporting GRU4Rec needs a newer torch"
)


@pytest.fixture(scope="module", params=["recipe", "sasrec", pytest.param("gru4rec", marks=NEEDS_LOOPS)])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    source = checkpoint(folder / "model", request.param)
    return source, export_checkpoint(source, folder / "onnx")


@pytest.mark.parametrize(
    "options",
    [
        {}, {"top_k": 3}, {"top_k": 1000}, {"exclude_history": False}, {"deny": ["a", "j", "x"]},
        {"allow": ["b", "d", "c"]}, {"allow": [list("abde")] * len(HISTORIES), "deny": [["a"]] * len(HISTORIES)},
        {"batch_size": 1}, {"batch_size": 2, "top_k": 2},
    ],
)  # fmt: skip
def test_the_answers_are_those_of_the_pipeline(exported, options):
    source, folder = exported
    expected = hf_bert4rec.pipeline(source, device="cpu")(HISTORIES, **options)
    answers = OnnxRecommender(folder, threads=1)(HISTORIES, **options)
    assert items_of(answers) == items_of(expected)
    assert scores_of(answers) == pytest.approx(scores_of(expected), abs=1e-5)
    assert [row["title"] for row in answers[1]] == [row["title"] for row in expected[1]]


def test_a_call_uses_the_cores_of_the_process_by_default(exported):
    """onnxruntime's own default is a thread for each core of the machine, which slows a process on one core."""
    _, folder = exported
    for threads, expected in ((None, torch.get_num_threads()), (3, 3)):
        session = OnnxRecommender(folder, threads)._session
        assert session.get_session_options().intra_op_num_threads == expected


def test_similar_items_are_those_of_the_pipeline(exported):
    source, folder = exported
    expected = hf_bert4rec.pipeline(source, device="cpu").similar(["a", "d"], top_k=3)
    answers = OnnxRecommender(folder, threads=1).similar(["a", "d"], top_k=3)
    assert items_of(answers) == items_of(expected)
    assert scores_of(answers) == pytest.approx(scores_of(expected), abs=1e-5)


def test_another_runtime_needs_only_the_files(exported):
    """As in docs/production.md: onnxruntime and pyarrow, without this package."""
    source, folder = exported
    items = pq.read_table(folder / "catalog.parquet")["item"].to_pylist()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    history = np.array([[3 + items.index("a"), 3 + items.index("b"), 0], [3 + items.index("e"), 0, 0]])
    inputs = {"history": history, "excluded": history, "allowed": np.ones((2, 13), bool), "top_k": np.array(4)}
    rows, scores = session.run(None, inputs)
    expected = hf_bert4rec.pipeline(source, device="cpu")([["a", "b"], ["e"]], top_k=4)
    assert [[items[row - 3] for row in found] for found in rows] == items_of(expected)
    assert scores.ravel().tolist() == pytest.approx(scores_of(expected), abs=1e-5)
    vectors = np.load(folder / "vectors.npy", allow_pickle=False)
    assert vectors == pytest.approx(hf_bert4rec.pipeline(source, device="cpu").item_vectors())


def test_the_program_of_torch_runs_with_other_sizes(exported):
    source, _ = exported
    model = hf_bert4rec.pipeline(source, device="cpu").model
    graph = export_program(model, np.array([5])).module()
    history = torch.tensor([[3, 4, 0, 0]])
    rows, _ = graph(history, history, torch.ones(1, 13, dtype=torch.bool), torch.tensor(6))
    expected = hf_bert4rec.pipeline(source, device="cpu")([["a", "b"]], top_k=6)
    assert [ITEMS[row - 3] for row in rows[0].tolist()] == items_of(expected)[0]


def test_the_graph_has_no_paths_of_this_machine(exported):
    content = (exported[1] / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b"hf_bert4rec/" not in content


def test_the_command_replaces_an_export_and_nothing_else(tmp_path, capsys):
    source = checkpoint(tmp_path / "model", "bert4rec")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "export.json").write_text("{}")  # of an older export
    main(["export", str(source), "--to", "onnx", "--output", str(tmp_path / "onnx")])
    assert len(OnnxRecommender(tmp_path / "onnx")([["a"]])[0]) == 8
    expected = hf_bert4rec.pipeline(source, device="cpu")([[], ["a"]])
    assert items_of(OnnxRecommender(tmp_path / "onnx")([[], ["a"]])) == items_of(expected)
    order = hf_bert4rec.pipeline(source, device="cpu").model.lm_head.bias[3:].argsort(descending=True)
    assert items_of(expected)[0] == [ITEMS[place] for place in order if ITEMS[place] != "c"]
    assert capsys.readouterr().out.endswith(f"Saved in {tmp_path / 'onnx'}.\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"is not an earlier result \(it has no export\.json\), so it is not replaced"):
        main(["export", str(source), "--output", str(tmp_path / "other")])
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
    (tmp_path / "onnx").rename(tmp_path / "onnx.replaced")  # a kill while the export is replaced
    assert len(OnnxRecommender(tmp_path / "onnx")([["a"]])[0]) == 8


def test_a_model_of_two_positions_and_a_missing_package_are_refused(exported, tmp_path, monkeypatch):
    hf_bert4rec.Bert4RecForMaskedLM(small_config(13, 2)).save_pretrained(tmp_path / "model")
    item_tokenizer(list(ITEMS), max_length=2).save_pretrained(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"needs a model with `max_position_embeddings` of at least 3, found 2\. Train"
    ):
        export_checkpoint(tmp_path / "model", tmp_path / "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # an import of it fails
    with pytest.raises(ImportError, match=r"need onnxruntime\. Run `pip install 'hf-bert4rec\[export\]'`"):
        OnnxRecommender(exported[1])


def test_damaged_exports_are_refused(exported, tmp_path):
    folder = shutil.copytree(exported[1], tmp_path / "onnx")
    vectors, graph = np.load(folder / "vectors.npy"), (folder / "model.onnx").read_bytes()
    np.save(folder / "vectors.npy", vectors[1:])
    with pytest.raises(ValueError, match=r"export\.json is incomplete, or not from the same export as vectors"):
        OnnxRecommender(folder)
    (damaged := shutil.copytree(folder, tmp_path / "damaged")).joinpath("export.json").write_text("{")
    with pytest.raises(ValueError, match=r"export\.json is not valid .*\. Repeat the export\.$"):
        OnnxRecommender(damaged)
    np.save(folder / "vectors.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        OnnxRecommender(folder)
    with pytest.raises(FileNotFoundError, match=r"found no export\.json\. Pass a folder that `hf-bert4rec export`"):
        OnnxRecommender(exported[0])
    with pytest.raises(FileNotFoundError, match=r"This is an export\. Pass the original checkpoint"):
        hf_bert4rec.pipeline(exported[1])
    np.save(folder / "vectors.npy", vectors)
    (folder / "model.onnx").write_bytes(graph[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        OnnxRecommender(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"cannot be read \(Couldn.t .* one\)\. Check the permissions .* repeat"):
        OnnxRecommender(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_damaged_weights_give_an_error(tmp_path, value):
    source = checkpoint(tmp_path / "model", "bert4rec")
    model = hf_bert4rec.Bert4RecForMaskedLM.from_pretrained(source)
    with torch.no_grad():
        model.get_output_embeddings().bias[4] = value  # of one item
    model.save_pretrained(source)
    recommender = OnnxRecommender(export_checkpoint(source, tmp_path / "onnx"))
    for options in ({}, {"allow": []}):  # without items to recommend, no score of an item shows the damage
        with pytest.raises(ValueError, match="scores are NaN or infinite"):
            recommender([["a"]], **options)


def fixes_the_batch(states, input_ids):
    return states + torch.ones(int(input_ids.shape[0]), 1, 1) if input_ids.shape[0] == 3 else states


def depends_on_values(states, input_ids):
    return states + 1 if input_ids.sum() > 40 else states


@pytest.mark.parametrize("change", [fixes_the_batch, depends_on_values])
def test_a_model_that_torch_cannot_export_is_one_sentence(tmp_path, monkeypatch, change):
    source, encode = checkpoint(tmp_path / "model", "recipe"), hf_bert4rec.Bert4RecModel.encode
    own = lambda self, input_ids, *others, **kwargs: change(encode(self, input_ids, *others, **kwargs), input_ids)  # noqa: E731
    monkeypatch.setattr(hf_bert4rec.Bert4RecModel, "encode", own)
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(source), "--output", str(tmp_path / "onnx")])
    assert "error: torch cannot export the architecture 'bert4rec' (" in str(exit_.value)
    assert "(docs/architecture.md, section Add a model)." in str(exit_.value)
    assert "\n" not in str(exit_.value)
