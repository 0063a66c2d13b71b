"""The registry of architectures, with an architecture of a user's own from training to recommending."""

import importlib
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING

import hf_bert4rec
from hf_bert4rec import (
    Bert4RecConfig,
    Bert4RecForMaskedLM,
    RecommendationTrainer,
    RecommendationTrainingArguments,
    SasRecConfig,
    cloze_training,
    item_tokenizer,
    leave_one_out,
    register_architecture,
)
from hf_bert4rec.hub.push import published_files
from hf_bert4rec.models.modeling_bert4rec import Bert4RecEncoder
from hf_bert4rec.models.registry import ARCHITECTURES, architecture_of

SOURCE = """
from torch import nn

from hf_bert4rec import Bert4RecConfig, Bert4RecForMaskedLM


class GatedConfig(Bert4RecConfig):
    model_type = "gated"

    gate: float = 0.5


class GatedForMaskedLM(Bert4RecForMaskedLM):
    config: GatedConfig

    def score_items(self, hidden_states, *inputs):
        return super().score_items(hidden_states * self.config.gate, *inputs)
"""


@pytest.fixture
def registries(monkeypatch):
    """What is registered is forgotten after the test."""
    for mapping in (CONFIG_MAPPING, MODEL_MAPPING, MODEL_FOR_MASKED_LM_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", {**mapping._extra_content})
    before = dict(ARCHITECTURES)
    yield
    ARCHITECTURES.clear()
    ARCHITECTURES.update(before)


@pytest.fixture
def gated(tmp_path, monkeypatch, registries):
    """A module of a user with an architecture of its own, which is forgotten after the test."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "gated_models.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    module = importlib.import_module("gated_models")
    yield module
    del sys.modules["gated_models"]


def train(module, interactions, folder):
    tokenizer = item_tokenizer(interactions, max_length=5)
    splits = leave_one_out(interactions, tokenizer)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "max_position_embeddings": 5}
    model = module.GatedForMaskedLM(module.GatedConfig(vocab_size=len(tokenizer), gate=0.25, **sizes))
    options = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    args = RecommendationTrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **options)
    trainer = RecommendationTrainer(model, args, train_dataset=splits["train"], **cloze_training(tokenizer))
    trainer.train()
    trainer.save_model()
    return trainer


def test_an_architecture_of_ones_own_trains_saves_and_recommends(gated, interactions, tmp_path):
    register_architecture(gated.GatedConfig, gated.GatedForMaskedLM, name="Gated BERT4Rec")
    folder = tmp_path / "out"
    trainer = train(gated, interactions, folder)
    card = (folder / "README.md").read_text()
    assert "Gated BERT4Rec" in card
    assert "\nimport gated_models  # registers the model\n" in card
    assert (
        "Without `import gated_models`,\n`trust_remote_code=True` lets them run the code in this repository, which"
        in card
    )
    assert (folder / "gated_models.py").read_text() == SOURCE
    assert {"gated_models.py", "modeling_bert4rec.py", "item_loss.py"} <= set(published_files(folder))
    assert type(AutoConfig.from_pretrained(folder)) is gated.GatedConfig
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert type(model) is gated.GatedForMaskedLM
    assert model.config.gate == 0.25
    assert type(AutoModel.from_pretrained(folder)) is hf_bert4rec.Bert4RecModel
    trained = hf_bert4rec.NextItemRecommendationPipeline(trainer.model, trainer.processing_class)
    assert hf_bert4rec.pipeline(folder)([["a", "b"]], top_k=2) == trained([["a", "b"]], top_k=2)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 33, "num_attention_heads": 2},
        {"hidden_dropout_prob": 5.0},
        {"loss": "own", "num_followers": 5},
        {"loss": "own", "repeat_head": True},
        {"gate": "half"},
    ],
)
def test_the_configuration_of_an_own_model_is_checked_like_that_of_a_built_in_one(gated, options):
    with pytest.raises(StrictDataclassError, match=r"must be|needs the loss 'softmax', found 'own'|expected float"):
        gated.GatedConfig(**options)


def test_an_architecture_that_is_not_registered_trains_under_its_class_name(gated, interactions, tmp_path):
    train(gated, interactions, tmp_path / "out")
    assert "Gated" in (tmp_path / "out" / "README.md").read_text()
    row = architecture_of(gated.GatedConfig())
    assert (row.name, row.model_type, row.objective) == ("Gated", "gated", "cloze")


def test_every_built_in_architecture_is_found_by_its_configuration():
    assert list(ARCHITECTURES) == ["bert4rec", "sasrec", "gru4rec"]
    for model_type, row in ARCHITECTURES.items():
        assert architecture_of(row.config_class()) is row
        assert type(AutoConfig.for_model(model_type)) is row.config_class
        assert row.encoder_class is row.model_class.base_class
    assert {row.model_type for row in ARCHITECTURES.values() if row.objective == "cloze"} == {"bert4rec"}


def test_a_subclass_has_the_architecture_of_its_closest_base_class():
    class WideConfig(SasRecConfig):
        pass

    row = architecture_of(WideConfig())
    assert (row.name, row.objective, row.config_class) == ("Wide", "next_item", WideConfig)
    with pytest.raises(ValueError, match=r"of a model of hf_bert4rec, found PreTrainedConfig\. Use a model such"):
        architecture_of(AutoConfig.for_model("bert").__class__.__mro__[1]())


def test_the_item_table_of_an_encoder_is_found_by_its_name():
    class Encoder(Bert4RecEncoder):
        def __init__(self, config):
            super().__init__(config)
            self.table = torch.nn.Embedding(config.vocab_size, config.hidden_size)

    class ForMaskedLM(Bert4RecForMaskedLM):
        base_class = Encoder

    with pytest.raises(NotImplementedError, match="get_input_embeddings` not auto"):
        ForMaskedLM(Bert4RecConfig(vocab_size=9))
    Encoder.get_input_embeddings = lambda self: self.table  # as transformers asks for other names
    model = ForMaskedLM(Bert4RecConfig(vocab_size=9))
    assert model.lm_head.weight is model.model.table.weight
    assert ForMaskedLM(Bert4RecConfig(vocab_size=9, tie_word_embeddings=False)).lm_head.weight is not model.model.table


def test_a_registration_without_a_model_type_or_a_configuration_is_refused():
    class NoTypeConfig(Bert4RecConfig):
        pass

    class MineConfig(Bert4RecConfig):
        model_type = "mine"

    class TakenConfig(Bert4RecConfig):
        model_type = "bert"

    class TakenForMaskedLM(Bert4RecForMaskedLM):
        config: TakenConfig

    with pytest.raises(ValueError, match="NoTypeConfig needs its own `model_type`, found 'bert4rec'"):
        register_architecture(NoTypeConfig, Bert4RecForMaskedLM)
    with pytest.raises(
        ValueError, match=r"has the configuration Bert4RecConfig, expected MineConfig\. Write .* `config: MineConfig`"
    ):
        register_architecture(MineConfig, Bert4RecForMaskedLM)
    TakenForMaskedLM.config_class = TakenConfig
    with pytest.raises(ValueError, match="`objective` must be 'cloze' or 'next_item', found 'x'"):
        register_architecture(Bert4RecConfig, Bert4RecForMaskedLM, objective="x")
    with pytest.raises(ValueError, match="'bert' is already used"):
        register_architecture(TakenConfig, TakenForMaskedLM)
    assert set(ARCHITECTURES) == {"bert4rec", "sasrec", "gru4rec"}


def test_the_annotation_of_the_configuration_may_be_postponed(tmp_path, monkeypatch, registries):
    lines = [
        "from __future__ import annotations",
        "from hf_bert4rec import Bert4RecConfig, Bert4RecForMaskedLM",
        "class LateConfig(Bert4RecConfig):",
        "    model_type = 'late'",
        "class LateForMaskedLM(Bert4RecForMaskedLM):",
        "    config: LateConfig",
    ]
    (tmp_path / "late.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    late = importlib.import_module("late")
    register_architecture(late.LateConfig, late.LateForMaskedLM)
    model = AutoModelForMaskedLM.from_config(late.LateConfig(vocab_size=9))
    model.save_pretrained(tmp_path / "model")
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "model")) is late.LateForMaskedLM
