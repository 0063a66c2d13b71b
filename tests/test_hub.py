"""Pushed to a Hub and loaded from it through the real client and command line, with this package and without it."""

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import huggingface_hub
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import hf_bert4rec
from hf_bert4rec import Bert4RecForMaskedLM, item_tokenizer
from hf_bert4rec.checkpoint import check_folder, push_checkpoint
from tests.conftest import small_config
from tests.hub_server import OWNER, TOKEN, running_hub

ROOT = Path(__file__).parents[1]
NAME = f"{OWNER}/bert4rec-small"
CODE = {"configuration_bert4rec.py", "item_loss.py", "modeling_bert4rec.py"}
LOADED = {"config.json", "items.parquet", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
HISTORIES = [["a", "c", "d"], ["b"]]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with nobody's repositories; the client is logged in to it, and its cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between tries
    another_machine(monkeypatch, tmp_path / "cache")
    with running_hub(os.environ["HF_ENDPOINT"]) as hub:
        yield hub
        huggingface_hub.close_session()  # its connections lead to this server


def another_machine(monkeypatch, cache: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))


def go_offline(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path, model, tokenizer) -> Path:
    """A checkpoint with all its files, and some that are nobody's business."""
    folder = tmp_path / "bert4rec-small"
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    (folder / "run_facts.json").write_text("{}")
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# Small\n")
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "notes.py", ".env"):
        (folder / name).write_bytes(b"private")
    return folder


def hf(*arguments: str, offline: str = "0", **environment: str) -> subprocess.CompletedProcess:
    """The real command line of huggingface_hub."""
    command = [str(Path(sys.executable).with_name("hf")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=child_environment(offline, **environment))


def child_environment(offline: str = "0", **environment: str) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": offline, "HF_TOKEN": TOKEN, "NO_COLOR": "1", **environment}


# ---------------------------------------------------------------------------------------------------- round trip


def test_a_checkpoint_goes_up_in_one_commit_and_nothing_else_of_its_folder(hub, folder):
    address = push_checkpoint(folder, NAME)
    repository = hub.repositories[NAME]
    assert address.startswith(f"{hub.url}/{NAME}/commit/")
    assert repository.messages == ["initial commit", "Upload bert4rec-small"]
    assert set(repository.files) == LOADED | CODE | {"run_facts.json", "README.md"}
    assert all(content == (folder / path).read_bytes() for path, content in repository.files.items())


def test_on_another_machine_the_auto_classes_and_the_pipeline_give_the_same(hub, folder, model, tmp_path, monkeypatch):
    expected = hf_bert4rec.pipeline(folder)(HISTORIES)
    push_checkpoint(folder, NAME)
    another_machine(monkeypatch, tmp_path / "another")
    assert isinstance(AutoModel.from_pretrained(NAME), hf_bert4rec.Bert4RecModel)
    ids = torch.tensor([[3, 5, 1]])
    assert torch.equal(AutoModelForMaskedLM.from_pretrained(NAME)(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(NAME).titles[:3] == ["Alpha", "Beta", None]
    assert hf_bert4rec.pipeline(NAME)(HISTORIES) == expected

    go_offline(monkeypatch)
    asked = len(hub.requests)
    assert hf_bert4rec.pipeline(NAME)(HISTORIES) == expected
    assert isinstance(AutoModel.from_pretrained(NAME), hf_bert4rec.Bert4RecModel)
    assert len(hub.requests) == asked


def test_with_the_package_the_code_of_a_repository_is_neither_loaded_nor_asked_about(hub, folder, monkeypatch):
    for name in CODE:
        (folder / name).write_text("raise SystemExit('executed')")
    push_checkpoint(folder, NAME)
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked: {question}"))
    for trust in (None, True, False):
        assert type(AutoModel.from_pretrained(NAME, trust_remote_code=trust)) is hf_bert4rec.Bert4RecModel
    hf_bert4rec.pipeline(NAME)
    assert not [request for request in hub.requests if request.endswith(".py")]


def test_a_pinned_revision_stays_what_it_was(hub, folder, model, monkeypatch):
    first = push_checkpoint(folder, NAME).rsplit("/", 1)[1]
    expected = hf_bert4rec.pipeline(folder)(HISTORIES)
    torch.nn.init.ones_(model.lm_head.bias[3:5].data)
    model.save_pretrained(folder)
    second = push_checkpoint(folder, NAME).rsplit("/", 1)[1]
    assert first != second
    assert hf_bert4rec.pipeline(NAME, revision=first)(HISTORIES) == expected
    assert hf_bert4rec.pipeline(NAME)(HISTORIES) != expected
    assert torch.equal(
        AutoModelForMaskedLM.from_pretrained(NAME, revision=second).lm_head.bias.data, model.lm_head.bias.data
    )


def test_a_private_repository_opens_with_the_token_alone(hub, folder, monkeypatch):
    push_checkpoint(folder, NAME, private=True)
    assert hub.repositories[NAME].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match=r"no such repository on the Hub.*if it is private, log in"):
        hf_bert4rec.pipeline(NAME)
    assert len(hf_bert4rec.pipeline(NAME, token=TOKEN)(HISTORIES)) == 2


def test_what_an_older_checkpoint_had_and_the_new_one_has_not_is_gone(hub, folder, tokenizer):
    push_checkpoint(folder, NAME)
    item_tokenizer(list("abcdefghij"), max_length=5).save_pretrained(folder)
    push_checkpoint(folder, NAME)
    assert "items.parquet" not in hub.repositories[NAME].files
    assert hf_bert4rec.pipeline(NAME)(HISTORIES)[0][0]["title"] is None


def test_the_command_line_of_the_hub_uploads_and_downloads_a_checkpoint(hub, tmp_path):
    release = ROOT / "model_cards" / "bert4rec-ml1m"
    uploaded = hf("upload", NAME, str(release))
    assert uploaded.returncode == 0, uploaded.stderr
    downloaded = hf("download", NAME, "--local-dir", str(tmp_path / "there"), HF_HOME=str(tmp_path))
    assert downloaded.returncode == 0, downloaded.stderr
    for path in release.iterdir():
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes(), path.name
    check_folder(tmp_path / "there")


# ----------------------------------------------------------------------------------------- without the package

WITHOUT_US = """
import sys
sys.path.append(sys.argv[1])
name, folder = sys.argv[2:]
import importlib.util
assert not [package for package in ("hf_bert4rec", "datasets", "pyarrow") if importlib.util.find_spec(package)]
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

try:
    AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=False)
except ValueError as error:
    print(error)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
batch = tokenizer([["a", "c", "d"], ["b"]], is_split_into_words=True, padding=True, return_tensors="pt")
found = dict(batch)
model = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)
found["logits"] = model(**batch).logits
found["states"] = AutoModel.from_pretrained(name, trust_remote_code=True)(**batch).last_hidden_state
model.save_pretrained(folder + "/again")
again = AutoModelForMaskedLM.from_pretrained(folder + "/again", trust_remote_code=True)
found["again"] = again(**batch).logits
found["states again"] = AutoModel.from_pretrained(folder + "/again", trust_remote_code=True)(**batch).last_hidden_state
save_file(found, folder + "/found.safetensors")
"""


def site_of(folder: Path, *packages: str) -> Path:
    """A folder that holds nothing but the installed packages and what they require."""
    folder.mkdir()
    wanted, done = list(packages), set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in done:
            continue
        done.add(name)
        for path in {file.parts[0] for file in distribution(name).files or ()} - {"..", "__pycache__"}:
            if not (folder / path).exists():  # a namespace can be shared
                (folder / path).symlink_to(distribution(name).locate_file(path))
        needed = map(Requirement, distribution(name).requires or ())
        wanted += [need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    return folder


@pytest.mark.parametrize("settings", [{}, {"rope_theta": 200, "conv_kernel_size": 3, "prediction_head": False}])
def test_torch_and_transformers_alone_give_the_same_logits_to_the_bit(hub, tokenizer, tmp_path, settings):
    torch.manual_seed(0)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 5, **settings)).eval()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    push_checkpoint(tmp_path / "model", NAME)
    site = site_of(tmp_path / "site", "torch", "transformers")
    command = [sys.executable, "-I", "-S", "-c", WITHOUT_US, str(site), NAME, str(tmp_path)]
    environment = child_environment(HF_HOME=str(tmp_path / "home"))
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "contains custom code which must be executed" in finished.stdout
    found = load_file(tmp_path / "found.safetensors")
    assert found["input_ids"].tolist() == [[3, 5, 6], [4, 0, 0]]
    batch = {name: found[name] for name in ("input_ids", "attention_mask")}
    for name in ("logits", "again"):
        assert torch.equal(found[name], model(**batch).logits)
    for name in ("states", "states again"):
        assert torch.equal(found[name], model.model(**batch).last_hidden_state)
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"config.json", "model.safetensors", *CODE}
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path / "again"), Bert4RecForMaskedLM)
