"""The README: its Python runs as it is printed, its claims about the repository are true, and it stays short."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from hf_bert4rec import (
    ARCHITECTURES,
    SPLITS,
    Bert4RecForMaskedLM,
    cloze_training,
    item_tokenizer,
    load_interactions,
    load_titles,
)
from hf_bert4rec.data.formats import FORMATS
from hf_bert4rec.models.item_loss import LOSSES
from tests.conftest import small_config
from tests.training.test_training import LOG

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    titles = load_titles("ml-latest-small")
    tokenizer = item_tokenizer(list(titles)[:2000], titles=titles, max_length=11)
    torch.manual_seed(0)
    for part in (Bert4RecForMaskedLM(small_config(len(tokenizer))), tokenizer):
        part.save_pretrained(tmp_path / "runs" / "ml-latest-small" / "model")
    (tmp_path / "ratings.csv").write_text(LOG)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    found = names["recommender"]([["260", "1196", "1210"]], top_k=10)[0]
    assert [set(row) for row in found] == [{"item", "title", "score"}] * 10
    assert 0 < names["trainer"].evaluate(names["histories"]["test"])["eval_ndcg@10"] <= 1
    assert (tmp_path / "bert4rec-mine" / "model.safetensors").exists()


def test_what_the_page_on_architecture_adds_works(tmp_path, monkeypatch):
    added = {"shop": FORMATS, "every_second_user": SPLITS, "bpr": LOSSES, "my_bert4rec": ARCHITECTURES}
    for name, registry in added.items():
        monkeypatch.setitem(registry, name, None)  # removed again after the test
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", ARCHITECTURE, re.DOTALL):
        exec(compile(block, "architecture.md", "exec"), names)
    lines = [f"2026-01-{day + 1:02}T10:00|u{user}|i{(user + day) % 5}\n" for user in range(4) for day in range(5)]
    (tmp_path / "log.shop").write_text("".join(lines))

    interactions = load_interactions(tmp_path / "log.shop")
    assert interactions[0] == {"user": "u0", "item": "i0", "timestamp": 1767261600}
    tokenizer = item_tokenizer(interactions)
    histories = SPLITS["every_second_user"].function(interactions, tokenizer)
    assert histories["test"]["labels"][:] == [[-100] * 4 + [rows] for rows in (3, 5)]
    config = names["MyConfig"](vocab_size=len(tokenizer), loss="bpr", num_negatives=2)
    model = AutoModelForMaskedLM.from_config(config).train()
    assert isinstance(model, names["MyModelForMaskedLM"])
    batch = cloze_training(tokenizer)["data_collator"]([*histories["train"]])
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        losses.append(model(**batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


def test_recommending_comes_by_line_40_and_training_on_own_data_by_line_80():
    lines = README.splitlines()
    assert next(i for i, line in enumerate(lines, 1) if "recommender([[" in line) <= 40
    assert next(i for i, line in enumerate(lines, 1) if "trainer.save_model()" in line) <= 80


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"PLACEHOLDER|@[A-Z]", README)


def test_every_folder_of_the_package_is_on_the_map():
    folders = {path.parent.name for path in (ROOT / "hf_bert4rec").glob("*/__init__.py")}
    assert {folder for folder in folders if f"`{folder}/`" not in ARCHITECTURE} == set()


def test_every_relative_link_leads_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1200


def test_every_command_of_the_readme_names_a_file_that_exists():
    for path in re.findall(r"scripts/[\w./-]+\.(?:py|yaml)", README):
        assert (ROOT / path).exists(), path
