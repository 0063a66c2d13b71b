"""Shared by all tests: no network, threads that do not spin, and small hand-written data."""

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

from tests.processes import reserve_port

# Where tests/hub_server.py listens when a test wants it. Nothing else can be reached.
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{reserve_port()}"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, started by the one that decides on GPUs
    os.environ.setdefault("OMP_NUM_THREADS", "1")
elif not {"gpu", "-mgpu"}.intersection(sys.argv):  # only `pytest -m gpu` uses GPUs
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import datasets
import huggingface_hub
import pandas as pd
import pytest
import torch
from datasets import Dataset, disable_progress_bars
from hypothesis import settings
from packaging.version import Version

from hf_bert4rec import (
    ARCHITECTURES,
    BASELINES,
    LOSSES,
    SPLITS,
    Bert4RecConfig,
    Bert4RecForMaskedLM,
    item_tokenizer,
    leave_one_out,
)
from hf_bert4rec.cli.main import main
from hf_bert4rec.cli.own_code import imported
from hf_bert4rec.data.formats import EMBEDDED, FORMATS
from hf_bert4rec.hub.run_facts import DataFacts, MachineFacts, RunFacts
from tests.hub_server import TOKEN, running_hub

disable_progress_bars()
logging.getLogger("hf_bert4rec").propagate = True  # for caplog
settings.register_profile("here", deadline=None, derandomize=True)  # the same examples everywhere, at any speed
settings.load_profile("here")


@pytest.fixture(autouse=True)
def restore_process():
    """Undo changes of log levels, and forget imported code. The commands make these changes for their own process."""
    yield
    imported.clear()
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith("hf_bert4rec"):
            logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def interactions() -> Dataset:
    """Four users, out of order in the log: u1 has 5 actions, u2 4, u3 3, u4 2."""
    rows = [
        ("u1", "a", 10), ("u2", "b", 11), ("u1", "b", 20), ("u3", "c", 12), ("u2", "c", 21), ("u4", "a", 13),
        ("u1", "c", 30), ("u3", "a", 22), ("u2", "d", 31), ("u1", "d", 40), ("u4", "b", 23), ("u3", "e", 32),
        ("u2", "a", 41), ("u1", "e", 50),
    ]  # fmt: skip
    users, items, timestamps = zip(*rows, strict=True)
    return Dataset.from_dict({"user": users, "item": items, "timestamp": timestamps})


@pytest.fixture
def cyclic_histories():
    """Splits and tokenizer of 20 users with 4 to 8 actions on 12 items: 20 training rows, 5 steps at batches of 4."""
    rows = [(f"u{u}", f"i{(3 * u + t) % 12}", t) for u in range(20) for t in range(4 + u % 5)]
    users, items, timestamps = zip(*rows, strict=True)
    log = Dataset.from_dict({"user": users, "item": items, "timestamp": timestamps})
    tokenizer = item_tokenizer(log, max_length=8)
    return leave_one_out(log, tokenizer), tokenizer


@pytest.fixture
def tokenizer():
    """Items a to j at rows 3 to 12; at most 5 positions."""
    return item_tokenizer(list("abcdefghij"), titles={"a": "Alpha", "b": "Beta"}, max_length=5)


@pytest.fixture
def model(tokenizer) -> Bert4RecForMaskedLM:
    """A small model for `tokenizer` whose sizes all differ; seeded, in evaluation mode."""
    torch.manual_seed(0)
    return Bert4RecForMaskedLM(small_config(len(tokenizer), 5)).eval()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with nobody's repositories; the client is logged in to it, and its cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    no_wait = SimpleNamespace(sleep=lambda seconds: None)  # between tries
    monkeypatch.setattr("huggingface_hub.utils._http.time", no_wait)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with running_hub(os.environ["HF_ENDPOINT"]) as hub:
        yield hub
        huggingface_hub.close_session()  # its connections lead to this server


@pytest.fixture(scope="session")
def trained_on_films(tmp_path_factory) -> Path:
    """A folder with a small log of films, `ratings.csv`, its titles, and checkpoints that were trained on it."""
    folder = tmp_path_factory.mktemp("films")
    log = pd.read_csv(EMBEDDED / "ml-latest-small" / "ratings.csv.gz")
    movies = pd.read_csv(EMBEDDED / "ml-latest-small" / "movies.csv.gz")
    popular = log["movieId"].value_counts().index[:40]
    log = log[log["movieId"].isin(popular) & (log["userId"] <= 60)].sort_values("timestamp", kind="stable")
    log.groupby("userId").tail(10).to_csv(folder / "ratings.csv", index=False)
    movies[movies["movieId"].isin(popular)].to_csv(folder / "movies.csv", index=False)
    words = ["--data=ratings.csv", "--titles=movies.csv", "--output_dir=runs/mine", "--num_train_epochs=2"]
    quiet = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        main(["train", *words])
    shutil.copytree(folder / "runs" / "mine", folder / "runs" / "ml-latest-small")
    for name in ("hf_bert4rec", "model_cards", "scripts"):
        (folder / name).symlink_to(Path(__file__).parents[1] / name)
    return folder


@pytest.fixture
def film_folder(trained_on_films, tmp_path, monkeypatch, hub) -> Iterator[Path]:
    """A copy of `trained_on_films` as the working directory; what is registered is removed after the test."""
    shutil.copytree(trained_on_films, tmp_path / "films", symlinks=True)
    monkeypatch.chdir(tmp_path / "films")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    registries = [(registry, dict(registry)) for registry in (ARCHITECTURES, BASELINES, FORMATS, LOSSES, SPLITS)]
    handlers = [*logging.root.handlers]
    yield tmp_path / "films"
    logging.root.handlers[:] = handlers
    for registry, entries in registries:
        registry.clear()
        registry.update(entries)


def needs(package: str, lowest: str) -> pytest.MarkDecorator:
    """Skip a test with versions of a package below `lowest`, which do not have what is tested."""
    old = Version(version(package)) < Version(lowest)
    return pytest.mark.skipif(old, reason=f"needs {package} {lowest} or later")


def small_config(vocab_size: int = 29, max_position_embeddings: int = 11, **changes) -> Bert4RecConfig:
    """Sizes that all differ, so that no two axes can be swapped unnoticed."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    return Bert4RecConfig.paper(
        vocab_size=vocab_size, max_position_embeddings=max_position_embeddings, **{**sizes, **changes}
    )


def lively(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Weights far from their small initial values, so that a wrong one shows; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
            if name.lower().endswith("norm.weight"):
                parameter += 1
    return model.eval()


def load_script(name: str) -> ModuleType:
    """Import scripts/NAME.py, which is no part of the package."""
    file = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_facts(**changes) -> RunFacts:
    """Run facts with the required values alone, and `changes`."""
    values = {
        "name": "small",
        "model": "BERT4Rec",
        "data": DataFacts(name="log.csv", items=10),
        "protocol": "leave-one-out, ranked among all 10 items, history excluded",
        "recipe": {"seed": 1},
        "machine": MachineFacts(processes=1, threads=2, processor="x86_64", device="cpu"),
    }
    return RunFacts(**{**values, **changes})
