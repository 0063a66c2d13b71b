"""README, pages and cards: their code runs as it is printed, their links lead somewhere, and messages are real.

The blocks of a page run in order, in one namespace and in a folder with `ratings.csv`, `movies.csv` and a trained
checkpoint. What a `python` block prints must be the `text` block after it. A `yaml` block whose first line names a file
is written to that file. Of the commands in `sh` blocks, fast ones run and the others are parsed. Hub IDs that begin
with `your-name/` are on the loopback Hub.
"""

import contextlib
import dataclasses
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

import hf_bert4rec
from hf_bert4rec import BASELINES, SPLITS, cloze_training, item_tokenizer, leave_one_out, load_interactions
from hf_bert4rec.cli.comparison_file import Comparison
from hf_bert4rec.cli.main import COMMANDS, main
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.inference.export import export_program
from tests.hub_server import OWNER

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
CARDS = {path.parent.name: path for path in (ROOT / "model_cards").glob("*/README.md")}
README = PAGES["README.md"].read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FAST = ("evaluate", "recommend", "items", "push", "push-data")
NOT_RUN = ("experiments.md", "performance.md", "results.md", "cookbook.md")
"""Pages whose commands need data that is not part of the repository, and one that `test_cookbook.py` runs."""


def run_blocks(name: str, text: str) -> dict:
    """Run the blocks of a page in the working directory, and return the namespace of its Python."""
    names: dict = {}
    printed = None
    for kind, code in BLOCK.findall(text.replace("your-name/", f"{OWNER}/")):
        if kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(code, name, "exec"), names)
            printed = output.getvalue()
            continue
        if kind == "text" and printed is not None:
            assert code.strip() == printed.strip(), f"{name} shows another output"
        elif kind == "yaml" and (file := re.match(r"# ([\w./-]+\.yaml)\n", code)):
            Path(file[1]).write_text(code, encoding="utf-8")
        elif kind == "sh":
            for line in code.replace("\\\n", " ").splitlines():
                run_command(line)
        printed = None
    return names


def run_command(line: str) -> None:
    """Run a command of this package if it is fast, and parse it otherwise; check the files that other lines name."""
    words = shlex.split(line, comments=True)
    for word in words:
        if re.fullmatch(r"scripts/[\w./-]+\.(py|yaml|sh)", word):
            assert Path(word).exists(), line
    if "scripts/train.py" in words:
        words = ["hf-bert4rec", "train", *words[words.index("scripts/train.py") + 1 :]]
    elif "&&" in words:
        words = words[words.index("&&") + 1 :]
    if words[:1] != ["hf-bert4rec"]:
        return
    command, *arguments = words[1:]
    if "--import" in arguments:  # the blocks of the page stand for the module
        place = arguments.index("--import")
        del arguments[place : place + 2]
    if command in FAST and "--help-all" not in arguments:
        with contextlib.redirect_stdout(io.StringIO()):
            main([command, *arguments])
    elif command == "compare":
        Comparison.load(arguments[0])
    elif command == "train" and not {"--help", "--help-all"}.intersection(arguments):
        parse_recipe(arguments)
    assert command in (*COMMANDS, "--help", "--version")


@pytest.mark.parametrize("page", sorted({*PAGES} - {"README.md", *NOT_RUN}))
def test_the_code_of_a_page_runs_as_it_is_printed(film_folder, page):
    run_blocks(page, PAGES[page].read_text(encoding="utf-8"))


def test_the_python_of_the_readme_recommends_titles_and_trains(film_folder):
    names = run_blocks("README.md", README)
    found = names["recommender"]([["260", "1196", "1210"]], top_k=10)[0]
    assert [set(row) for row in found] == [{"item", "title", "score"}] * 10
    assert 0 < names["trainer"].evaluate(names["histories"]["test"])["eval_ndcg@10"] <= 1
    assert Path("bert4rec-mine", "model.safetensors").exists()


def test_what_the_page_on_architecture_adds_works(film_folder):
    names = run_blocks("architecture.md", PAGES["architecture.md"].read_text(encoding="utf-8"))
    lines = [f"2026-01-{day + 1:02}T10:00|u{user}|i{(user + day) % 5}\n" for user in range(4) for day in range(5)]
    Path("log.shop").write_text("".join(lines))

    interactions = load_interactions("log.shop")
    assert interactions[0] == {"user": "u0", "item": "i0", "timestamp": 1767261600}
    tokenizer = item_tokenizer(interactions)
    histories = SPLITS["every_second_user"].function(interactions, tokenizer)
    assert histories["test"]["labels"][:] == [[-100] * 4 + [rows] for rows in (3, 5)]
    torch.manual_seed(0)
    config = names["MyConfig"](vocab_size=len(tokenizer), loss="bpr", num_negatives=2, hidden_dropout_prob=0.0)
    model = AutoModelForMaskedLM.from_config(config).train()
    assert isinstance(model, names["MyModelForMaskedLM"])
    batch = cloze_training(tokenizer)["data_collator"]([*histories["train"]])
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        losses.append(model(**batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
    mean = AutoModelForMaskedLM.from_config(names["MeanConfig"](vocab_size=len(tokenizer), num_followers=2)).eval()
    assert mean.lm_head.weight is mean.model.item_embeddings.weight
    inputs, padded = torch.tensor([[4, 5, 1]]), torch.tensor([[5, 4, 1, 0]])
    states = mean.model(inputs).last_hidden_state
    torch.testing.assert_close(states[0], mean.model.item_embeddings(inputs[0]).mean(dim=0).expand(3, -1))
    kept = {"attention_mask": (padded > 0).long(), "kept_positions": torch.tensor([[2]])}
    torch.testing.assert_close(mean.model(padded, **kept).last_hidden_state, states[:, 2:])
    export_program(mean, np.empty(0, np.int64))
    whole = leave_one_out(interactions, tokenizer, max_length=100)["train"]  # three items of each user
    baseline = BASELINES["last_items"](whole, len(tokenizer), number=2)
    rows = tokenizer.encode_items(["i1", "i2", "i3", "i4", "i0"])
    assert baseline.counts[rows].tolist() == [1, 2, 2, 2, 1]
    output = baseline(torch.tensor([[rows[0], tokenizer.mask_token_id]]), torch.ones(1, 2))
    assert output.logits[0, 0].tolist() == baseline.counts.tolist()


def test_the_page_on_results_names_the_items_of_movielens_1m(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model_cards").symlink_to(ROOT / "model_cards")
    Path("data", "ml-1m").mkdir(parents=True)
    Path("data/ml-1m/ml-1m.txt").write_text("".join(f"1 {number}\n" for number in range(1, 3417)))
    blocks = BLOCK.findall(PAGES["results.md"].read_text(encoding="utf-8"))
    (code,) = (code for kind, code in blocks if kind == "python")
    exec(compile(code, "results.md", "exec"), {})
    lines = Path("data/ml-1m/items.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["item\tmovie_id\ttitle", "1\t1198\tRaiders of the Lost Ark (1981)"]
    assert len(lines) == 3417


@pytest.mark.parametrize("card", sorted(CARDS))
def test_the_code_of_a_released_card_runs(card):
    folder = CARDS[card].parent
    run_blocks(card, CARDS[card].read_text(encoding="utf-8").replace("path/to/this/folder", str(folder)))


def test_the_code_of_a_new_card_runs(film_folder):
    card = Path("runs", "mine", "model", "README.md").read_text(encoding="utf-8")
    run_blocks("card", card.replace("path/to/this/folder", "runs/mine/model"))


def test_the_code_of_the_card_of_a_dataset_runs(film_folder, hub):
    run_command(f"hf-bert4rec push-data runs/mine/model {OWNER}/mine --i_may_share_this_data")
    card = hub.repositories[f"datasets/{OWNER}/mine"].files["README.md"].decode()
    names = run_blocks("card", card)
    assert list(names["histories"]) == ["train", "validation", "test"]
    assert names["tokenizer"].titles


def test_the_code_of_the_card_of_the_metric_runs():
    card = Path(hf_bert4rec.NEXT_ITEM_METRIC, "README.md").read_text(encoding="utf-8")
    names = run_blocks("card", card.replace("your-name/next_item", hf_bert4rec.NEXT_ITEM_METRIC))
    assert names["metric"].compute(predictions=[1, 3], k=[2]) == {"hr@2": 0.5, "ndcg@2": 0.5, "mrr@2": 0.5}


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes for the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = sum(re.sub(r"-\d+$", "", other) == anchor for other in found)
        found.append(f"{anchor}-{number}" if number else anchor)
    return {*found}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_relative_link_and_anchor_leads_somewhere(page):
    text = PAGES[page].read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", BLOCK.sub("", text)):
        path, _, anchor = target.partition("#")
        file = PAGES[page].parent / path if path else PAGES[page]
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_every_page_is_in_the_index_and_on_the_website():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", PAGES["index.md"].read_text(encoding="utf-8")))
    listed = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert linked | {"index.md"} == listed == pages


def test_every_public_name_is_in_the_api_reference():
    listed = re.findall(r"^::: hf_bert4rec\.(\w+)$", PAGES["api.md"].read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(hf_bert4rec.__all__)


def test_every_name_that_a_page_imports_is_in_the_api_reference():
    reference = set(re.findall(r"^::: (\S+)$", PAGES["api.md"].read_text(encoding="utf-8"), re.MULTILINE))
    files = [*PAGES.values(), *(ROOT / "notebooks").glob("*.ipynb")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    imports = re.findall(r"from (hf_bert4rec(?:\.\w+)*) import ([\w, ]+)", text)
    imported = {f"{module}.{name}" for module, names in imports for name in names.split(", ")}
    public = {name for name in imported if name.rpartition(".")[2] in hf_bert4rec.__all__}
    assert len(imported) > 10
    assert imported - public - reference == set()


def test_recommending_comes_by_line_40_and_training_on_an_own_log_by_line_80():
    lines = README.splitlines()
    assert next(i for i, line in enumerate(lines, 1) if "recommender([[" in line) <= 40
    assert next(i for i, line in enumerate(lines, 1) if "trainer.save_model()" in line) <= 80


def test_the_readme_is_short_and_has_one_picture():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1200
    assert README.count("![") == 1


def test_nothing_is_left_to_fill_in():
    for page in PAGES.values():
        assert not re.search(r"PLACEHOLDER|TODO|FIXME", page.read_text(encoding="utf-8")), page.name


def test_every_folder_of_the_package_is_in_the_page_on_architecture():
    architecture = PAGES["architecture.md"].read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "hf_bert4rec").glob("*/__init__.py")}
    assert {folder for folder in folders if f"`{folder}/`" not in architecture} == set()


# -------------------------------------------------------------------------------------------------- help texts


def help_of(*words: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main(words)
    return output.getvalue()


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_help_of_a_recipe_names_options_that_exist_and_the_full_help_names_all(command):
    short, full = help_of(command, "--help"), help_of(command, "--help-all")
    recipe = parse_recipe([])
    sections = (recipe.run, recipe.reading, recipe.splitting, recipe.model, recipe.masking, recipe.training)
    options = {field.name for section in sections for field in dataclasses.fields(section) if field.init}
    assert options - set(re.findall(r"--(\w+)", full)) == set()
    assert "--help-all" in short
    named = set(re.findall(r"--(\w+)", short)) - {"help"}
    assert named - set(re.findall(r"--(\w+)", full)) == set()


@pytest.mark.parametrize("command", ["compare", "recommend", "push", "push-data"])
def test_the_help_of_a_command_describes_each_of_its_options(command):
    text = help_of(command, "--help")
    listed = re.sub(r"\n {8,}", "   ", text.partition("positional arguments:")[2])  # one line for each option
    options = re.findall(r"^  \S.*$", listed, re.MULTILINE)
    assert len(options) > 3
    assert [option for option in options if not re.match(r"  \S.*? {2,}\S", option)] == []


def test_every_option_of_a_recipe_has_a_text():
    recipe = parse_recipe([])
    fields = [*dataclasses.fields(recipe.run), *dataclasses.fields(recipe.training)]
    fields += [
        it for part in ("reading", "splitting", "model", "masking") for it in dataclasses.fields(getattr(recipe, part))
    ]
    assert [field.name for field in fields if field.init and not field.metadata.get("help")] == []
