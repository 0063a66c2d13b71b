"""The models on a GPU: `python -m pytest -m gpu`. Without one these tests are skipped."""

import json
import subprocess
import sys

import pytest
import torch
from datasets import Dataset

from hf_bert4rec import (
    RecommendationTrainer,
    RecommendationTrainingArguments,
    cloze_training,
    item_tokenizer,
    leave_one_out,
)
from hf_bert4rec.models.registry import ARCHITECTURES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu")]
ROWS, SPECIALS = 50, 3
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 16}
LOSSES = ["softmax", "sampled_softmax", "gbce", "bce"]
every_architecture = pytest.mark.parametrize("architecture", list(ARCHITECTURES))


def model_of(architecture="bert4rec", **changes):
    torch.manual_seed(0)
    row, options = ARCHITECTURES[architecture], {"hidden_dropout_prob": 0.0, **SIZES, **changes}
    return row.model_class(row.config_class(vocab_size=ROWS, **options)).eval()


def batch_on(device):
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(SPECIALS, ROWS, (6, 16), generator=generator)
    mask = (torch.arange(16) < torch.tensor([16, 12, 9, 5, 2, 16])[:, None]).long()
    labels = torch.where((torch.rand(6, 16, generator=generator) < 0.3) & (mask == 1), input_ids, -100)
    labels[:, 0] = input_ids[:, 0]  # every row has a label
    input_ids = input_ids.masked_fill(labels != -100, 1) * mask
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


@every_architecture
def test_logits_loss_and_gradients_are_those_of_the_cpu(architecture):
    found = []
    for device in ("cpu", "cuda"):
        model, batch = model_of(architecture).to(device), batch_on(device)
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


@every_architecture
def test_bfloat16_is_close_to_float32(architecture):
    model, batch = model_of(architecture).cuda(), batch_on("cuda")
    expected = model(**batch).loss
    with torch.autocast("cuda", torch.bfloat16):
        outputs = model(**batch)
    assert outputs.logits.dtype == torch.float32  # no ties in the ranking
    torch.testing.assert_close(outputs.loss, expected, atol=0.05, rtol=0.02)


def test_a_compiled_model_trains_the_same():
    model, batch = model_of().cuda().train(), batch_on("cuda")
    expected = model(**batch).loss
    loss = torch.compile(model)(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


def train(folder: str, **options) -> float:
    """Train on a log in which item i is always followed by item i + 1, and return validation NDCG@10."""
    log = [(f"u{u}", f"i{(u + t) % 20}", t) for u in range(60) for t in range(10)]
    users, items, timestamps = zip(*log, strict=True)
    log = Dataset.from_dict({"user": users, "item": items, "timestamp": timestamps})
    tokenizer = item_tokenizer(log, max_length=16)
    splits = leave_one_out(log, tokenizer)
    row = ARCHITECTURES["bert4rec"]
    torch.manual_seed(0)
    model = row.model_class(row.config_class(vocab_size=len(tokenizer), **SIZES))
    options = {"num_train_epochs": 15, "per_device_train_batch_size": 8, "report_to": "none", **options}
    args = RecommendationTrainingArguments(folder, disable_tqdm=True, **options)
    data = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
    trainer = RecommendationTrainer(model, args, **data, **cloze_training(tokenizer))
    trainer.train()
    assert trainer.model.device.type == "cuda"
    return trainer.evaluate()["eval_ndcg@10"]


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"torch_compile": True}], ids=["float32", "bf16", "compile"])
def test_a_training_run_learns_the_next_item(tmp_path, options):
    assert train(str(tmp_path), **options) > 0.8


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_train_together(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import json, sys\nfrom tests.models.test_gpu import train\n"
        "score = train(sys.argv[1])\nprint(json.dumps({'score': score}), flush=True)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script), str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    scores = [json.loads(line)["score"] for line in finished.stdout.splitlines() if line.startswith('{"score"')]
    assert len(scores) == 2
    assert scores[0] == scores[1] > 0.8
