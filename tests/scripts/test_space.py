"""The Space: its functions, what it shows, what is pushed, and a walk through it in a browser at phone width."""

import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import tomllib
from html import escape as html_escape
from pathlib import Path
from types import ModuleType
from urllib.request import urlopen

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement

import hf_bert4rec
from hf_bert4rec import Bert4RecForMaskedLM, NextItemRecommendationPipeline, item_tokenizer
from tests.conftest import load_script, small_config, small_facts
from tests.processes import reserve_port

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "scripts" / "space"
TITLES = {
    "a": "Matrix, The (1999)",
    "b": "The Thing (1982)",
    "c": "Amélie",
    "d": "Something's Gotta Give",
    "e": "<b>${1 + 1} {{value}}</b>",
    "f": "In the Mood for Love",
    "g": "E.T. the Extra-Terrestrial",
    "h": "Thingvellir",
    "i": "A film with a long name, as the names of films are in the days of subtitles: the second part",
}  # j has none
ITEMS = "abcdefghij"
MASK, FIRST_ITEM, LIMIT = 1, 3, 5


@pytest.fixture(scope="module")
def app() -> ModuleType:
    return load_script("space/app")


@pytest.fixture(scope="module")
def push() -> ModuleType:
    return load_script("space/push")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint of 10 items and 5 positions, with weights so large that every history matters."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = item_tokenizer(list(ITEMS), titles=TITLES, max_length=LIMIT)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), LIMIT))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recommender(folder) -> NextItemRecommendationPipeline:
    return hf_bert4rec.pipeline(folder, device="cpu")


@pytest.fixture(scope="module")
def page(app, recommender):
    return app.Page(recommender)


@pytest.fixture(scope="module")
def catalog(app) -> dict:
    """Ten items in the order of their IDs, which stands for the order of a model."""
    return {item: app.Item(item, name, app.fold(name), app.fold(item)) for item, name in {**TITLES, "j": "j"}.items()}


def state_of(app, items: str, masked: int | None = None):
    """State with these items, oldest first; keys count from 1."""
    history = tuple(app.Entry(str(place), item) for place, item in enumerate(items, 1))
    return app.State(history, None if masked is None else history[masked].key)


# ---- search ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("the matrix", "a"),  # words in any order
        ("  MATRIX ", "a"),
        ("amelie", "c"),
        ("somethings", "d"),
        ("et extraterrestrial", "g"),
        ("thing", "hbd"),  # begins with it, then a word of it, then a part
        ("the", "bafgi"),
        ("j", "j"),  # no title: found by its ID
        ("f", "fi"),  # the item with this ID, then those with a name that contains the query
        ("matrix love", ""),
        ("zzz", ""),
        ("", ""),
        (" .", ""),
    ],
)
def test_search_finds_every_word_and_the_best_match_comes_first(app, catalog, query, found):
    assert "".join(item.id for item in app.search(catalog, query)) == found


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("TEA-0951 L", ["TEA-0951 L", "tea-0951 l", "TEA-0951 LX"]),
        ("tea0951 l", ["TEA-0951 L", "tea-0951 l", "TEA-0951 LX"]),
        (" tea-0951 l ", ["tea-0951 l", "TEA-0951 L", "TEA-0951 LX"]),  # exactly this ID is first
        ("0951", ["12", "TEA-0951 L", "tea-0951 l", "TEA-0951 LX"]),  # names before parts of IDs
        ("tea 12", ["12"]),  # one word is in the name, the other in the ID
        ("!!", ["!!"]),  # nothing but punctuation
        ("日本", ["日本"]),
        ("5", ["12", "50", "TEA-0951 L", "tea-0951 l", "TEA-0951 LX"]),
    ],
)
def test_search_finds_items_by_their_ids(app, query, found):
    names = {
        "TEA-0951 L": "Green",
        "tea-0951 l": "Mint",
        "TEA-0951 LX": "Red",
        "12": "Tea 0951",
        "!!": "x",
        "日本": "y",
        "50": "z",
    }
    catalog = {item: app.Item(item, name, app.fold(name), app.fold(item)) for item, name in names.items()}
    assert [item.id for item in app.search(catalog, query)] == found


def test_a_search_returns_at_most_the_limit(app, catalog):
    assert "".join(item.id for item in app.search(catalog, "the", limit=2)) == "ba"


def test_the_catalog_contains_every_item_the_most_likely_first(app, recommender):
    catalog = app.load_catalog(recommender)
    assert list(catalog) == [row["item"] for row in recommender([[]], top_k=10)[0]]
    assert {item: row.name for item, row in catalog.items()} == {**TITLES, "j": "j"}


def test_a_catalog_without_titles_shows_raw_ids_once(app, folder, tmp_path):
    tokenizer = item_tokenizer([f"B00{item}" for item in ITEMS], max_length=LIMIT)
    shutil.copytree(folder, tmp_path / "raw")
    tokenizer.save_pretrained(tmp_path / "raw")
    page = app.Page(hf_bert4rec.pipeline(tmp_path / "raw", device="cpu"))
    assert [item.name for item in app.search(page.catalog, "b00C")] == ["B00c"]
    html = page.hits("b00c")
    assert 'aria-label="Add B00c"' in html
    assert 'class="id"' not in html


# ---- the history -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "key", "items", "masked"),
    [
        ("add", "d", "abcad", 1),
        ("add", "a", "abcaa", 1),  # an item may occur more than once
        ("remove", "3", "aba", 1),
        ("remove", "4", "abc", 1),  # the entry, not the item
        ("remove", "2", "aca", None),  # the mask goes with its entry
        ("earlier", "2", "baca", 0),  # and moves with it
        ("later", "2", "acba", 2),
        ("earlier", "1", "abca", 1),  # no further than the ends
        ("later", "4", "abca", 1),
        ("earlier", "4", "abac", 1),
        ("mask", "4", "abca", 3),
        ("mask", "2", "abca", None),  # pressed again
        ("clear", "", "", None),
        ("add", "no such item", "abca", 1),  # no button sends the following
        ("remove", "9", "abca", 1),
        ("mask", "a", "abca", 1),
        ("fly", "1", "abca", 1),
    ],
)
def test_each_button_changes_the_history(app, catalog, action, key, items, masked):
    before = state_of(app, "abca", masked=1)
    after = app.act(before, action, key, catalog)
    assert "".join(after.items) == items
    assert after.position(after.masked) == masked
    assert len({entry.key for entry in after.history}) == len(items)
    assert before == state_of(app, "abca", masked=1)


# ---- the model -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def brute_force(recommender, history: str, position: int) -> dict[str, float]:
    """Probabilities of every item at a position of a history, from the whole of the model's logits."""
    rows = [FIRST_ITEM + ITEMS.index(item) for item in history]
    rows[position] = MASK
    logits = recommender.model(torch.tensor([rows])).logits[0, position, FIRST_ITEM:]
    return dict(zip(ITEMS, logits.softmax(dim=0).tolist(), strict=True))


@pytest.mark.parametrize(
    ("history", "position", "read", "at"),
    [
        ("a", 0, "a", 0),
        ("abcd", 0, "abcd", 0),
        ("abcd", 2, "abcd", 2),
        ("abcd", 3, "abcd", 3),
        ("abca", 3, "abca", 3),  # the masked item also occurs elsewhere, so it is not expected here
        ("abcdefgh", 0, "abcde", 0),  # longer than the input of the model: the part around the position
        ("abcdefgh", 3, "bcdef", 2),
        ("abcdefgh", 6, "defgh", 3),
    ],
)
def test_expectations_at_a_position_equal_brute_force(app, recommender, history, position, read, at):
    answer = app.expect(recommender, list(history), position, top_k=10)
    probabilities = brute_force(recommender, read, at)
    others = set(history[:position] + history[position + 1 :])
    expected = sorted(set(ITEMS) - others, key=probabilities.get, reverse=True)
    assert [row["item"] for row in answer] == expected  # includes the masked item if it does not occur elsewhere
    assert [row["score"] for row in answer] == pytest.approx([probabilities[item] for item in expected], abs=1e-5)


def test_masking_the_last_item_equals_recommending_after_the_others(app, recommender):
    answer = app.expect(recommender, ("a", "b", "c"), 2, top_k=3)
    expected = app.recommend(recommender, ("a", "b"), top_k=3)
    assert [row["item"] for row in answer] == [row["item"] for row in expected]
    assert [row["score"] for row in answer] == pytest.approx([row["score"] for row in expected], abs=1e-5)


# ---- what is shown ---------------------------------------------------------------------------------------------------


def labels(html: str) -> list[str]:
    return re.findall(r'aria-label="([^"]*)"', html)


def test_an_empty_history_offers_items_to_start_with(app, page):
    html = page.history(app.State())
    first = list(page.catalog.values())
    assert "Nothing here yet" in html
    assert labels(html) == [f"Add {item.name}" for item in (first[0], first[5])]
    assert len([it for it in labels(page.recommendations(app.State())) if it.startswith("Add ")]) == 10


def test_a_search_without_hits_says_so(page):
    assert "Nothing found for “&lt;zzz&gt;”" in page.hits("<zzz>")
    assert "No title" not in page.hits(" ")


def test_titles_and_ids_are_escaped(app, page):
    state = state_of(app, "e", masked=0)
    for html in (page.hits("value"), page.history(state), page.recommendations(app.State())):
        assert "&lt;b&gt;${1 + 1} {{value}}&lt;/b&gt;" in html
        assert "<b>$" not in html


def test_ids_are_shown_next_to_titles(app, page):
    for html in (page.hits("amelie"), page.history(state_of(app, "c")), page.recommendations(app.State())):
        assert 'Amélie <span class="id">c</span>' in html
    assert "<span" not in page.history(state_of(app, "j")).split('class="name">')[1].split("</span>")[0]  # no title


def test_the_rank_of_the_masked_item_is_shown(app, page, recommender):
    html = page.history(state_of(app, "acb", masked=1))
    answer = app.expect(recommender, list("acb"), 1, top_k=10)
    rank = [row["item"] for row in answer].index("c") + 1
    assert f"Amélie itself is number <b>{rank}</b>" in html
    assert html.count('<span class="score">') == 5


def test_an_explained_recommendation_shows_what_speaks_for_it_next_to_the_history(app, page, recommender):
    state = app.act(state_of(app, "abc"), "explain", "f", page.catalog)
    factors = [math.exp(row["contribution"]) for row in recommender.explain(list("abc"), "f")]
    assert page.factors(state) == factors
    assert re.findall(r'class="factor(?: less)?">×([\d.]+)<', page.history(state)) == [f"{it:.2f}" for it in factors]
    html = page.recommendations(state)
    best = max(zip(factors, "abc", strict=True))
    assert f"Because of <b>{html_escape(TITLES[best[1]])}</b> (×{best[0]:.2f})" in html
    similar = [row["title"] or row["item"] for row in recommender.similar(["f"], top_k=3)[0]]
    assert [it for it in labels(html) if "similar" in it] == [f"Add the similar {html_escape(it)}" for it in similar]
    assert app.act(state, "explain", "f", page.catalog) == state_of(app, "abc")
    assert "factor" not in page.history(state_of(app, "abc"))
    alone = page.recommendations(app.State(explained="f"))
    assert "nothing speaks for it but its popularity" in alone


def test_an_expected_item_can_be_put_at_the_masked_place(app, page):
    state = app.act(state_of(app, "acb", masked=1), "put", "d", page.catalog)
    assert ("".join(state.items), state.masked) == ("adb", None)
    assert app.act(state, "put", "e", page.catalog) == state  # nothing is masked


def test_the_slider_makes_the_list_more_diverse(app, page, recommender):
    def distance(items):
        vectors = recommender.item_vectors()[[ITEMS.index(item) for item in items], :-1]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return (1 - vectors @ vectors.T).mean()

    lists = [[row["item"] for row in app.recommend(recommender, ["a"], 4, weight)] for weight in (0, 0.5)]
    assert distance(lists[1]) > distance(lists[0])
    shown = re.findall(r'data-action="add" data-key="(.)"', page.recommendations(state_of(app, "a"), 0.5))
    assert shown == [row["item"] for row in app.recommend(recommender, ["a"], diversity=0.5)]


def test_a_history_of_the_whole_catalog_leaves_nothing_to_recommend(app, page):
    html = page.recommendations(state_of(app, ITEMS))
    assert "Nothing is left to recommend" in html
    assert labels(html) == []


@pytest.mark.parametrize("excluded", [True, False])
def test_the_history_is_excluded_where_the_model_excludes_it(app, folder, tmp_path, excluded):
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "exclude_history": excluded}))
    recommender = hf_bert4rec.pipeline(tmp_path / "model", device="cpu")
    assert len(app.recommend(recommender, ["a", "b"], top_k=20)) == (8 if excluded else 10)
    assert len(app.expect(recommender, ["a", "b", "c"], 1, top_k=20)) == (8 if excluded else 10)
    app.Page(recommender).history(state_of(app, "aba", masked=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--help"], "folder or Hub ID"),
        ([], "app.py: error: gradio is not installed. Run `pip install 'hf-bert4rec[space]'`."),
    ],
)
def test_without_gradio_the_app_shows_its_help_and_names_the_command_to_install_it(
    options, message, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["app.py", *options])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    assert message in capsys.readouterr().out + str(stopped.value)
    assert bool(stopped.value.code) is not bool(options)


# ---- what is pushed --------------------------------------------------------------------------------------------------


def test_a_space_holds_the_app_the_package_and_the_checkpoint(push, folder, tmp_path):
    assert push.assemble(tmp_path, str(folder)) == "model"
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    model = {f"model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "items.parquet")}
    app = {"app.py", "page.html", "style.css", "README.md", "requirements.txt", "LICENSE", "hf_bert4rec/__init__.py"}
    assert files >= app | model
    assert not [name for name in files if "__pycache__" in name or name.startswith("hf_bert4rec/data/embedded/")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (tmp_path / "requirements.txt").read_text().splitlines() == project["dependencies"]


def test_a_space_of_a_hub_id_names_the_model(push, tmp_path):
    assert push.assemble(tmp_path, "org/bert4rec") == "org/bert4rec"
    assert SpaceCard.load(tmp_path / "README.md").data.models == ["org/bert4rec"]
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_no_checkpoint_is_refused_before_anything_is_made(push, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "HfApi", lambda: pytest.fail("the Hub was asked"))
    with pytest.raises(FileNotFoundError, match=r"found no config\.json"):
        push.push("org/demo", str(tmp_path))


def test_the_card_asks_for_a_gradio_and_a_python_that_the_project_takes():
    card = SpaceCard.load(SPACE / "README.md").data
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (gradio,) = (Requirement(line) for line in project["optional-dependencies"]["space"])
    assert (card.sdk, gradio.name) == ("gradio", "gradio")
    assert card.sdk_version in gradio.specifier
    assert card.python_version in Requirement(f"python{project['requires-python']}").specifier
    assert (SPACE / card.app_file).exists()
    assert len(card.short_description) <= 60  # the Hub refuses more


def test_a_push_makes_the_space_and_names_its_model(push, folder, hub, tmp_path):
    private = tmp_path / "mine"
    shutil.copytree(folder, private)
    (private / "diary.png").write_bytes(b"private")
    recipe = {"data": "/home/me/client/log.csv", "titles": "../../client/titles.csv", "seed": 1}
    small_facts(recipe=recipe).save(private)
    assert push.push("org/demo", str(private)) == f"{hub.url}/spaces/org/demo"
    space = hub.repositories["spaces/org/demo"]
    assert not space.private
    assert {"app.py", "model/config.json", "hf_bert4rec/__init__.py"} <= set(space.files)
    assert json.loads(space.files["model/run_facts.json"])["recipe"] == {
        "data": "log.csv", "titles": "titles.csv", "seed": 1
    }  # fmt: skip
    assert "model/diary.png" not in space.files
    assert hub.variables == {"spaces/org/demo": {"MODEL": "model"}}

    push.push("org/demo", "org/bert4rec")  # what was bundled goes
    assert not [name for name in space.files if name.startswith("model/")]
    assert hub.variables == {"spaces/org/demo": {"MODEL": "org/bert4rec"}}
    push.push("org/hidden", "org/bert4rec", private=True)
    assert hub.repositories["spaces/org/hidden"].private


def test_a_push_that_fails_leaves_the_space_as_it_is_and_says_why(push, folder, hub):
    push.push("org/demo", "org/bert4rec")
    before = dict(hub.repositories["spaces/org/demo"].files)
    hub.lose_commits = True
    with pytest.raises(ConnectionError, match="org/demo: the connection to the Hub failed"):
        push.push("org/demo", str(folder))
    assert hub.repositories["spaces/org/demo"].files == before
    assert hub.variables == {"spaces/org/demo": {"MODEL": "org/bert4rec"}}


def test_another_app_is_not_replaced(push, hub):
    huggingface_hub.create_repo("org/demo", repo_type="space", space_sdk="gradio")
    huggingface_hub.upload_file(
        path_or_fileobj=b"print()", path_in_repo="app.py", repo_id="org/demo", repo_type="space"
    )
    with pytest.raises(
        FileExistsError, match=r"org/demo is taken: the repository contains other files, such as app\.py"
    ):
        push.push("org/demo", "org/bert4rec")


def test_a_space_of_parts_that_disagree_is_refused(push, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "mixed")
    item_tokenizer(["a"], max_length=LIMIT).save_pretrained(tmp_path / "mixed")
    with pytest.raises(ValueError, match="take both from the same checkpoint"):
        push.assemble(tmp_path, str(tmp_path / "mixed"))


# ---- in a browser ----------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture
def address(push, folder, tmp_path):
    """A Space as it is pushed, served on this machine."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[test-space]'")
    loaded = push.assemble(tmp_path, str(folder))
    port = reserve_port()
    settings = {"MODEL": loaded, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    with (tmp_path / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "app.py"], cwd=tmp_path, env={**os.environ, **settings}, stdout=log, stderr=log
        )
    try:
        for _ in range(240):
            assert server.poll() is None, (tmp_path / "log.txt").read_text()
            try:
                urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def phone():
    """A page 375 pixels wide that reaches this machine alone; `outside` lists what else it asked for."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[test-space]'"
    )
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        phone = browser.new_page(viewport={"width": 375, "height": 812}, has_touch=True)
        phone.outside = []
        phone.route(
            lambda url: not url.startswith(("http://127.0.0.1", "data:", "blob:")),
            lambda route: (phone.outside.append(route.request.url), route.abort()),
        )
        yield phone
        browser.close()


# Types text right after an action, before the answer to the action can come.
TYPE = """async ([action, text]) => {
    const field = document.querySelector('#search textarea, #search input');
    eval(action);
    await new Promise(resolve => setTimeout(resolve, 5));
    field.value = text;
    field.dispatchEvent(new Event('input', {bubbles: true}));
}"""


# The contrast of each text with its background, as in WCAG 2.2 (relative luminance), with opacity. Texts that are
# disabled have no required contrast.
CONTRASTS = """() => {
    const numbers = color => { if (!color.startsWith('rgb')) throw color; return color.match(/[\\d.]+/g).map(Number); };
    const over = (front, back) => [0, 1, 2].map(i => front[i] * (front[3] ?? 1) + back[i] * (1 - (front[3] ?? 1)));
    const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const above = node => node ? [...above(node.parentElement), node] : [];
    return [...document.querySelectorAll('.gradio-container *')].filter(node =>
        [...node.childNodes].some(part => part.nodeType == 3 && part.textContent.trim())
        && node.checkVisibility({visibilityProperty: true}) && node.getBoundingClientRect().width > 1
        && !node.closest(':disabled')
    ).map(node => {
        let back = [255, 255, 255];
        let opacity = 1;
        for (const part of above(node)) {
            back = over(numbers(getComputedStyle(part).backgroundColor), back);
            opacity *= getComputedStyle(part).opacity;
        }
        const color = numbers(getComputedStyle(node).color);
        const pair = [luminance(over([...color.slice(0, 3), (color[3] ?? 1) * opacity], back)), luminance(back)];
        return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), node.textContent.trim()];
    });
}"""


def test_a_walk_through_the_space_on_a_phone(phone, address, app, recommender):
    from playwright.sync_api import expect

    history, hits = phone.locator(".entry > .name"), phone.locator(".hits")
    following = phone.locator("section:has(#next-title) .line .name")
    search = phone.get_by_placeholder("Search by title or ID")
    names = {**TITLES, "j": "j"}
    shown = {item: f"{name} {item}" if item in TITLES else name for item, name in names.items()}

    def press(label: str, way: str = "tap") -> None:
        button = phone.get_by_role("button", name=label, exact=True)
        button.press("Enter") if way == "keyboard" else button.tap()

    def shows(*items: str, masked: str | None = None) -> None:
        """The history, and what is recommended after it; all of it within the width, every button large enough."""
        expect(history).to_have_text([f"[MASK] {names[item]}" if item == masked else shown[item] for item in items])
        expect(following).to_have_text([shown[row["item"]] for row in app.recommend(recommender, items)])
        assert phone.evaluate("document.documentElement.scrollWidth") == 375
        sizes = phone.evaluate(
            "[...document.querySelectorAll('button[data-action]:not(.example)')].map(b => b.getBoundingClientRect())"
            ".map(box => [box.width, box.height, box.left, box.right])"
        )
        assert sizes
        assert min(min(width, height) for width, height, _, _ in sizes) >= 44
        assert all(0 <= left < right <= 375 for _, _, left, right in sizes)

    phone.goto(address)
    expect(phone.get_by_text("Nothing here yet")).to_be_visible()
    shows()

    search.press_sequentially("zzz")
    expect(phone.get_by_text("Nothing found for “zzz”")).to_be_visible()
    search.fill("matr")  # as pasted
    phone.get_by_role("button", name="Add Matrix, The (1999)", exact=True).dblclick()
    expect(search).to_have_value("")
    expect(hits).to_have_text("")
    shows("a")
    search.press_sequentially("amelie")
    expect(hits).to_contain_text("Amélie")
    search.press("Enter")
    shows("a", "c")
    first = app.recommend(recommender, ("a", "c"))[0]["item"]
    place = following.first.bounding_box()["y"]
    following.first.tap()
    shows("a", "c", first)
    phone.wait_for_function("scrollY > 0")
    assert following.first.bounding_box()["y"] == pytest.approx(place, abs=2)  # the history has grown above it

    press("Move Amélie earlier")
    shows("c", "a", first)
    press("Move Amélie later", "keyboard")
    shows("a", "c", first)
    expect(phone.get_by_role("button", name="Move Amélie later")).to_be_focused()  # the focus went with the item
    phone.keyboard.press("Enter")
    shows("a", first, "c")

    press(f"Mask {names[first]}")
    shows("a", first, "c", masked=first)
    expected = [shown[row["item"]] for row in app.expect(recommender, ("a", first, "c"), 1)]
    expect(phone.locator(".expected .name")).to_have_text(expected)
    press("Remove Matrix, The (1999)")
    shows(first, "c", masked=first)
    expected = [shown[row["item"]] for row in app.expect(recommender, (first, "c"), 0)]
    expect(phone.locator(".expected .name")).to_have_text(expected)
    press(f"Mask {names[first]}", "keyboard")
    expect(phone.locator(".expected")).to_have_count(0)

    explained = app.recommend(recommender, (first, "c"))[1]["item"]
    press(f"Why {names[explained]}?")
    factors = [math.exp(row["contribution"]) for row in recommender.explain([first, "c"], explained)]
    expect(phone.locator(".entry .factor")).to_have_text([f"×{factor:.2f}" for factor in factors])
    expect(phone.locator(".reasons")).to_contain_text("Similar items:")
    shows(first, "c")
    press(f"Why {names[explained]}?", "keyboard")
    expect(phone.locator(".factor")).to_have_count(0)
    press(f"Mask {names[first]}")
    put = app.expect(recommender, (first, "c"), 0)[-1]["item"]
    phone.locator(".expected button").last.tap()
    shows(put, "c")
    press(f"Mask {names[put]}")
    phone.locator(f".expected button[data-key={first}]").tap()
    shows(first, "c")
    slider = phone.get_by_role("slider")
    slider.focus()
    slider.press("End")
    diverse = [shown[row["item"]] for row in app.recommend(recommender, (first, "c"), diversity=0.5)]
    expect(following).to_have_text(diverse)
    expect(phone.get_by_role("spinbutton")).to_have_value("0.5")
    slider.press("Home")

    press(f"Mask {names[first]}")
    expect(phone.locator(".masked")).to_be_visible()
    for width in (390, 1280):
        phone.set_viewport_size({"width": width, "height": 844})
        assert phone.evaluate("document.documentElement.scrollWidth") == width
        contrasts = phone.evaluate(CONTRASTS)
        assert names[first] in [text for _, text in contrasts]
        assert [(contrast, text) for contrast, text in contrasts if contrast < 4.5] == []
    phone.set_viewport_size({"width": 375, "height": 812})
    press(f"Mask {names[first]}")

    search.fill("value")
    press("Add <b>${1 + 1} {{value}}</b>")
    shows(first, "c", "e")
    search.fill("long name")  # a click soon after the last one and at the same place is no double click if one typed
    phone.get_by_role("button", name=f"Add {names['i']}", exact=True).dispatch_event("click", {"detail": 2})
    shows(first, "c", "e", "i")
    search.fill("c")
    search.press("Enter")  # the item with this ID, a second time
    shows(first, "c", "e", "i", "c")
    phone.get_by_role("button", name="Remove Amélie").first.tap()
    shows(first, "e", "i", "c")
    press("Start over")
    shows()

    search.fill("matr")
    expect(hits).to_contain_text("Matrix")
    phone.evaluate(TYPE, ["[...document.querySelectorAll('.hits button')][0].click()", "amelie"])
    shows("a")
    expect(search).to_have_value("amelie")
    expect(hits).to_contain_text("Amélie")
    enter = "field.dispatchEvent(new KeyboardEvent('keypress', {key: 'Enter', bubbles: true}))"
    phone.evaluate(TYPE, [enter, "thing"])
    shows("a", "c")
    expect(search).to_have_value("thing")
    expect(hits).to_contain_text("Thingvellir")
    search.press("Enter")
    shows("a", "c", "h")
    expect(search).to_have_value("")
    expect(hits).to_have_text("")
    assert phone.outside == []
