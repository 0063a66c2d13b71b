"""Recommendations in the browser: search, build a history by clicking, and ask what the model expects.

    python scripts/space/app.py                          # the released bert4rec-ml1m
    python scripts/space/app.py runs/mine/model          # or MODEL=…: any checkpoint folder or Hub id

As a Space: scripts/space/push.py.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads make small models much slower
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import argparse
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader

import hf_bert4rec
from hf_bert4rec import NextItemRecommendationPipeline
from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.inference.pipeline import Recommendation

if TYPE_CHECKING:
    import gradio as gr

HERE = Path(__file__).resolve().parent
RELEASED = HERE.parent.parent / "model_cards" / "bert4rec-ml1m"
HITS = 8
RECOMMENDATIONS = 10
EXPECTATIONS = 5
EXAMPLES = slice(0, 30, 5)  # of the likeliest first items, some apart: neighbours are often of one series


class Item(NamedTuple):
    """An item as it is shown (its title, or the raw id where it has none), and as it is searched."""

    id: str
    name: str
    folded: str


class State(NamedTuple):
    """What a visitor has chosen: items, oldest first, no item twice, and which of them is masked."""

    history: tuple[str, ...] = ()
    masked: str | None = None


def fold(text: str) -> str:
    """Text as it is compared: without case, accents and punctuation."""
    kept = (c for c in unicodedata.normalize("NFKD", text.casefold()) if unicodedata.category(c)[0] not in "MP")
    return " ".join("".join(kept).split())


def load_catalogue(recommender: NextItemRecommendationPipeline) -> dict[str, Item]:
    """Raw id → item, the likeliest first item of a history first."""
    (everything,) = recommender([[]], top_k=len(recommender.tokenizer))
    names = {row["item"]: row["title"] or row["item"] for row in everything}
    return {item: Item(item, name, fold(name)) for item, name in names.items()}


def search(catalogue: Mapping[str, Item], query: str, limit: int = HITS) -> list[Item]:
    """Items whose name holds every word of the query, in any order; those that begin with it first, then whole words.

    Among equals the order is that of the catalogue.
    """
    folded = fold(query)
    words = folded.split()
    hits = [item for item in catalogue.values() if words and all(word in item.folded for word in words)]

    def distance(item: Item) -> tuple[bool, bool]:
        begun = all(f" {word}" in f" {item.folded}" for word in words)
        return not item.folded.startswith(folded), not begun

    return sorted(hits, key=distance)[:limit]


def add(history: tuple[str, ...], item: str) -> tuple[str, ...]:
    """Append an item as the newest; one that is there already stays where it is."""
    return history if item in history else (*history, item)


def remove(history: tuple[str, ...], item: str) -> tuple[str, ...]:
    """Take an item out."""
    return tuple(other for other in history if other != item)


def move(history: tuple[str, ...], item: str, by: int) -> tuple[str, ...]:
    """Move an item `by` places, towards the newest where positive, and no further than the ends."""
    place = max(0, history.index(item) + by)
    rest = remove(history, item)
    return (*rest[:place], item, *rest[place:])


def act(state: State, action: str, item: str, catalogue: Mapping[str, Item]) -> State:
    """The state after a button is pressed; what cannot be done leaves it as it is."""
    history, masked = state
    if action == "add" and item in catalogue:
        return State(add(history, item), masked)
    if action == "clear":
        return State()
    if item not in history:
        return state
    if action == "remove":
        return State(remove(history, item), None if masked == item else masked)
    if action == "mask":
        return State(history, None if masked == item else item)
    return State(move(history, item, {"earlier": -1, "later": 1}.get(action, 0)), masked)


def recommend(
    recommender: NextItemRecommendationPipeline, history: Iterable[str], top_k: int = RECOMMENDATIONS
) -> list[Recommendation]:
    """What comes next, best first."""
    return recommender([history], top_k=top_k)[0]


@torch.inference_mode()
def expect(
    recommender: NextItemRecommendationPipeline, history: Iterable[str], position: int, top_k: int = EXPECTATIONS
) -> list[Recommendation]:
    """What the model puts in a position of the history, read with a [MASK] there; best first.

    Of a history longer than the model takes it reads the part around the position, the newest where that holds it.

    Args:
        recommender: The pipeline of a checkpoint.
        history: Raw ids that the model knows, oldest first.
        position: Which of them to mask, 0 being the oldest.
        top_k: How many items. The rest of the history is left out, the masked item is not.
    """
    tokenizer = recommender.tokenizer
    rows = tokenizer.encode_items(history).astype(np.int64)
    others = np.delete(rows, position)
    rows[position] = tokenizer.mask_token_id
    limit = tokenizer.model_max_length
    start = max(0, min(position - limit // 2, len(rows) - limit))
    batch = torch.from_numpy(rows[None, start : start + limit]).to(recommender.device)
    mask = torch.tensor([[position - start]], device=recommender.device)
    logits = recommender.model(batch, kept_positions=mask).logits[:, 0].float().cpu()
    outputs = {"logits": logits, "history": torch.from_numpy(others[None])}
    return recommender.postprocess(outputs, top_k=top_k)[0]


class Page:
    """What is shown for a state: HTML, in which every title is escaped."""

    def __init__(self, recommender: NextItemRecommendationPipeline) -> None:
        self.recommender = recommender
        self.catalogue = load_catalogue(recommender)
        self.template = Environment(
            loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
        ).get_template("page.html")

    def heading(self) -> str:
        """What this is."""
        return self._part("heading", items=len(self.catalogue))

    def hits(self, state: State, query: str) -> str:
        """What the search found."""
        return self._part("hits", query=query.strip(), hits=search(self.catalogue, query), history=state.history)

    def history(self, state: State) -> str:
        """The history with its buttons, what is expected at the masked position, or how to begin."""
        expected: list[Recommendation] = []
        rank = 0
        if state.masked is not None:
            position = state.history.index(state.masked)
            expected = expect(self.recommender, state.history, position, top_k=len(self.catalogue))
            rank = 1 + [row["item"] for row in expected].index(state.masked)
        return self._part(
            "history",
            items=[self.catalogue[item] for item in state.history],
            masked=state.masked,
            expected=expected[:EXPECTATIONS],
            rank=rank,
            score=expected[rank - 1]["score"] if expected else 0,
            examples=list(self.catalogue.values())[EXAMPLES],
        )

    def recommendations(self, state: State) -> str:
        """What is recommended next."""
        rows = recommend(self.recommender, state.history)
        return self._part("recommendations", rows=rows, empty=not state.history)

    def _part(self, name: str, **values: object) -> str:
        return str(getattr(self.template.module, name)(**values))


# A press on any button of a part goes to Python. The part is redrawn in place, so the focus follows the item that was
# pressed if it is still there.
PRESS = """
let pressed = null;
element.addEventListener('click', event => {
    const button = event.target.closest('button[data-action]');
    if (!button) return;
    pressed = {...button.dataset};
    trigger('press', pressed);
});
watch('value', () => {
    if (!pressed) return;
    const buttons = [...element.querySelectorAll('button[data-action]:enabled')];
    const same = buttons.filter(button => button.dataset.item === pressed.item);
    (same.find(button => button.dataset.action === pressed.action) ?? same[0])?.focus({preventScroll: true});
    pressed = null;
});
"""


def build(page: Page) -> "gr.Blocks":
    """The app: a search field and three parts of HTML whose buttons are handled in one place."""
    import gradio as gr  # here, so that the functions above are of use without it

    def show(state: State, query: str, added: bool) -> tuple:
        """All parts; what was searched for is done with once something is added, else what is being typed stays."""
        parts = page.hits(state, "" if added else query), page.history(state), page.recommendations(state)
        return state, "" if added else gr.skip(), *parts

    def press(state: State, query: str, event: gr.EventData) -> tuple:
        new = act(state, str(event.action), str(event.item), page.catalogue)
        return show(new, query, added=event.action == "add")

    def add_first(state: State, query: str) -> tuple:
        hits = search(page.catalogue, query, limit=1)
        new = act(state, "add", hits[0].id, page.catalogue) if hits else state
        return show(new, query, added=bool(hits))

    def part(html: str) -> gr.HTML:
        return gr.HTML(html, js_on_load=PRESS, apply_default_css=False)

    start = State()
    with gr.Blocks(title="BERT4Rec", fill_width=True) as app:
        state = gr.State(start)
        part(page.heading())
        with gr.Row():
            with gr.Column(min_width=300):
                label = "Search the catalogue"
                query = gr.Textbox(label=label, placeholder=label, show_label=False, container=False, elem_id="search")
                hits = part(page.hits(start, ""))
                history = part(page.history(start))
            with gr.Column(min_width=300):
                recommendations = part(page.recommendations(start))
        shown = [state, query, hits, history, recommendations]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        query.change(page.hits, [state, query], hits, trigger_mode="always_last", **quiet)
        query.submit(add_first, [state, query], shown, **quiet)
        for pressed in (hits, history, recommendations):
            pressed.press(press, [state, query], shown, trigger_mode="multiple", **quiet)
    return app


def main() -> None:
    """Serve the app."""
    import gradio as gr

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL") or str(RELEASED), help="Folder or Hub id.")
    model = parser.parse_args().model
    with plain_errors():
        page = Page(hf_bert4rec.pipeline(model))
    theme = gr.themes.Base(primary_hue="indigo", font=["system-ui", "sans-serif"]).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_500",  # readable, which the defaults are not
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
    )
    build(page).launch(css_paths=HERE / "style.css", theme=theme, footer_links=[], run_history=False, ssr_mode=False)


if __name__ == "__main__":
    main()
