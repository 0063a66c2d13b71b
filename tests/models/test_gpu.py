"""The models on a GPU: `python -m pytest -m gpu`. Without one these tests are skipped."""

import contextlib
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from hf_bert4rec import (
    NextItemRecommendationPipeline,
    RecommendationTrainer,
    RecommendationTrainingArguments,
    cloze_training,
    count_transitions,
    initialize_items,
    item_tokenizer,
    leave_one_out,
    load_item_features,
    pipeline,
    transfer,
)
from hf_bert4rec.cli.main import main
from hf_bert4rec.hub.run_facts import RunFacts
from hf_bert4rec.models.registry import ARCHITECTURES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu")]
ROWS, SPECIALS = 50, 3
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 16}
HEADS = {"repeat_head": True, "num_followers": 3}
LOSSES = ["softmax", "sampled_softmax", "gbce", "bce"]
# Item i is always followed by item i + 1.
LOG = pd.DataFrame(
    [(f"u{user}", f"i{(user + time) % 20}", time) for user in range(60) for time in range(10)],
    columns=["user", "item", "timestamp"],
)
HISTORIES = Dataset.from_dict({"user": [0, 1], "input_ids": [[*range(3, 30)], [4, 9, 14, 30, 31, 4, 9]]})
every_architecture = pytest.mark.parametrize("architecture", list(ARCHITECTURES))


@pytest.fixture(autouse=True)
def full_precision():
    """Multiply without TF32, which a training run with `torch_compile` allows for the whole process."""
    torch.set_float32_matmul_precision("highest")


def model_of(architecture="bert4rec", **changes):
    torch.manual_seed(0)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    row, options = ARCHITECTURES[architecture], {**no_dropout, **SIZES, **changes}
    model = row.model_class(row.config_class(vocab_size=ROWS, **options)).eval()
    if model.config.num_followers:
        count_transitions(model, HISTORIES)
    return model


def batch_on(device):
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(SPECIALS, ROWS, (6, 16), generator=generator)
    mask = (torch.arange(16) < torch.tensor([16, 12, 9, 5, 2, 16])[:, None]).long()
    labels = torch.where((torch.rand(6, 16, generator=generator) < 0.3) & (mask == 1), input_ids, -100)
    labels[:, 0] = input_ids[:, 0]  # every row has a label
    input_ids = input_ids.masked_fill(labels != -100, 1) * mask
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


@pytest.mark.parametrize("heads", [{}, HEADS], ids=["", "all heads"])
@every_architecture
def test_logits_loss_and_gradients_are_those_of_the_cpu(architecture, heads):
    found = []
    for device in ("cpu", "cuda"):
        model, batch = model_of(architecture, **heads).to(device), batch_on(device)
        outputs = model(**batch)
        loss = model.train()(**batch).loss
        loss.backward()
        gradients = [parameter.grad.cpu() for parameter in model.parameters()]
        found.append([outputs.logits.cpu(), outputs.loss.cpu(), loss.cpu(), *gradients])
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_goes_down(loss):
    model, batch = model_of(loss=loss, num_negatives=20).cuda().train(), batch_on("cuda")
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-2), []
    for _ in range(20):
        losses.append(model(**batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_every_attention_backend_gives_the_same_logits(attention):
    model, batch = model_of().cuda(), batch_on("cuda")
    kept = {"kept_positions": torch.tensor([[15], [11], [8], [4], [1], [15]], device="cuda")}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**inputs, **kept).logits
        model.set_attn_implementation(attention)
        torch.testing.assert_close(model(**inputs, **kept).logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("heads", [{}, HEADS], ids=["", "all heads"])
@every_architecture
def test_bfloat16_is_close_to_float32(architecture, heads):
    model, batch = model_of(architecture, **heads).cuda(), batch_on("cuda")
    expected = model(**batch).loss
    with torch.autocast("cuda", torch.bfloat16):
        outputs = model(**batch)
    assert outputs.logits.dtype == torch.float32  # no ties in the ranking
    torch.testing.assert_close(outputs.loss, expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("heads", [{}, HEADS], ids=["", "all heads"])
def test_a_compiled_model_trains_the_same(heads):
    model, batch = model_of(**heads).cuda().train(), batch_on("cuda")
    expected = model(**batch).loss
    loss = torch.compile(model)(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


def train(folder: str, features: pd.DataFrame | None = None, **options) -> RecommendationTrainer:
    """Train on LOG, where a model can predict each next item. Return the trainer."""
    features = None if features is None else load_item_features(features)
    tokenizer = item_tokenizer(Dataset.from_pandas(LOG), features=features, max_length=16)
    splits = leave_one_out(Dataset.from_pandas(LOG), tokenizer)
    row = ARCHITECTURES["bert4rec"]
    torch.manual_seed(0)
    heads = options.pop("heads", {})
    model = row.model_class(row.config_class(vocab_size=len(tokenizer), **SIZES, **heads))
    initialize_items(model, splits["train"])
    options = {"num_train_epochs": 15, "per_device_train_batch_size": 8, "report_to": "none", **options}
    args = RecommendationTrainingArguments(folder, disable_tqdm=True, **options)
    data = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
    trainer = RecommendationTrainer(model, args, **data, **cloze_training(tokenizer))
    trainer.train()
    assert trainer.model.device.type == "cuda"
    return trainer


@pytest.mark.parametrize("heads", [{}, HEADS], ids=["", "all heads"])
@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"torch_compile": True}], ids=["float32", "bf16", "compile"])
def test_a_training_run_learns_the_next_item(tmp_path, options, heads):
    assert train(str(tmp_path), heads=heads, **options).evaluate()["eval_ndcg@10"] > 0.8


def test_a_training_run_with_features_represents_items_without_interactions(tmp_path):
    items = [f"i{item}" for item in range(22)]  # two of them are not in the log
    numbers = np.eye(22, dtype=np.float32)
    numbers[20:] = numbers[4:6]  # with the features of i4 and i5
    features = pd.DataFrame({"item": items, "vector": list(numbers)})
    trainer = train(str(tmp_path), features, num_train_epochs=30)
    trainer.save_model()
    recommender = pipeline(str(tmp_path), device=0)
    best = [row["item"] for row in recommender([["i1", "i2", "i3"]], top_k=2, allow=["i4", "i20", "i9", "i12"])[0]]
    assert set(best) == {"i4", "i20"}


def answers_on(device, model):
    """Return what each method of a pipeline answers."""
    recommender = NextItemRecommendationPipeline(
        model=model, tokenizer=item_tokenizer(range(ROWS - SPECIALS), max_length=16), device=device
    )
    histories = [["2", "6"], ["3", "1", "8", "30"]]
    return [
        recommender([*histories, []], top_k=5),
        recommender(histories, top_k=3, allow=["5", "9", "11", "12"], exclude_history=False),
        recommender.fill([["2", None, "6"]], top_k=3),
        recommender.surprise(histories),
        recommender.explain(histories[1], "9"),
        recommender.similar(["4"], top_k=3),
        recommender.encode(histories).tolist(),
        recommender.item_vectors().tolist(),
    ]


@pytest.mark.parametrize("heads", [{}, HEADS], ids=["", "all heads"])
@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_answers_as_on_the_cpu(heads):
    assert_close(*(answers_on(device, model_of(**heads)) for device in ("cuda", "cpu")))


def assert_close(found, expected):
    """Compare nested lists and dicts. Numbers may differ by rounding."""
    if isinstance(expected, dict | list):
        keys = expected if isinstance(expected, dict) else range(len(expected))
        assert len(found) == len(expected)
        for key in keys:
            assert_close(found[key], expected[key])
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-3)
    else:
        assert found == expected


def test_a_model_on_the_gpu_is_initialized_as_on_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        model = model_of(num_followers=3).to(device)
        torch.manual_seed(0)
        initialize_items(model, HISTORIES)
        found.append([weight.cpu() for weight in model.state_dict().values()])
    torch.testing.assert_close(*found)


def test_a_model_on_the_gpu_is_transferred():
    old = item_tokenizer(range(ROWS - SPECIALS), max_length=16)
    new = item_tokenizer(["5", "9", "new"], max_length=16)
    found, expected = (transfer(model_of().to(device), old, new) for device in ("cuda", "cpu"))
    known = new.encode_items(["5", "9"])
    vectors = [model.get_input_embeddings().weight[known].cpu() for model in (found, expected)]
    torch.testing.assert_close(*vectors)


def test_the_command_trains_evaluates_and_recommends(tmp_path, capsys):
    LOG.to_csv(tmp_path / "log.csv", index=False)
    with contextlib.chdir(tmp_path):
        main(["train", "--data", "log.csv", "--output_dir", "run", "--num_train_epochs", "10"])
        facts = RunFacts.load(tmp_path / "run" / "model")
        assert facts.machine.device.startswith("cuda")
        assert facts.results["test"]["BERT4Rec"]["ndcg@10"] > 0.8
        main(["evaluate", "run/model"])
        capsys.readouterr()
        main(["recommend", "run/model", "--history", "i3", "i4", "--top_k", "1"])
    assert "i5" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_train_together(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import json, sys\nfrom tests.models.test_gpu import train\n"
        "score = train(sys.argv[1]).evaluate()['eval_ndcg@10']\nprint(json.dumps({'score': score}), flush=True)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script), str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    scores = [json.loads(line)["score"] for line in finished.stdout.splitlines() if line.startswith('{"score"')]
    assert len(scores) == 2
    assert scores[0] == scores[1] > 0.8
