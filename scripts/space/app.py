"""Demo in the browser: build a history, see recommendations and their reasons, and see which items fit at a position.

    python scripts/space/app.py                          # the released bert4rec-ml1m
    python scripts/space/app.py runs/mine/model          # a checkpoint folder or Hub ID

The environment variable MODEL can name the checkpoint too. scripts/space/push.py creates a Space with this demo.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads make small models much slower
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import argparse
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader

import hf_bert4rec
from hf_bert4rec import NextItemRecommendationPipeline, diversify
from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.inference.answers import Recommendation

if TYPE_CHECKING:
    import gradio as gr

HERE = Path(__file__).resolve().parent
RELEASED = HERE.parent.parent / "model_cards" / "bert4rec-ml1m"
HITS = 8
RECOMMENDATIONS = 10
EXPECTATIONS = 5
REASONS, SIMILAR = 3, 3
MOST_DIVERSE = 0.5  # weight of the diversity at the right end of the slider
EXAMPLES = slice(0, 30, 5)  # every fifth of the most likely first items, because neighbors are often of one series


class Item(NamedTuple):
    """An item with its name (the title, or the raw ID if it has none), and ID and name as `fold` returns them."""

    id: str
    name: str
    folded: str
    folded_id: str


class Entry(NamedTuple):
    """An item in a history. The key identifies the entry, because an item may occur twice."""

    key: str
    item: str


class State(NamedTuple):
    """The choices of a visitor: entries, oldest first, the key of the masked one, and the recommendation to explain."""

    history: tuple[Entry, ...] = ()
    masked: str | None = None
    explained: str | None = None

    @property
    def items(self) -> list[str]:
        """Raw IDs, oldest first."""
        return [entry.item for entry in self.history]

    def position(self, key: str | None) -> int | None:
        """Position of an entry, 0 for the oldest; None if there is no such entry."""
        return next((place for place, entry in enumerate(self.history) if entry.key == key), None)


def fold(text: str) -> str:
    """Return text without case, accents and punctuation."""
    kept = (c for c in unicodedata.normalize("NFKD", text.casefold()) if unicodedata.category(c)[0] not in "MP")
    return " ".join("".join(kept).split())


def load_catalog(recommender: NextItemRecommendationPipeline) -> dict[str, Item]:
    """Return a dict from raw ID to item. The most likely first item of a history comes first."""
    (everything,) = recommender([[]], top_k=len(recommender.tokenizer))
    names = {row["item"]: row["title"] or row["item"] for row in everything}
    return {item: Item(item, name, fold(name), fold(item)) for item, name in names.items()}


def search(catalog: Mapping[str, Item], query: str, limit: int = HITS) -> list[Item]:
    """Return up to `limit` items with this ID, or with every word of the query in the name or ID, in any order.

    Items with exactly this ID are first, then names that start with the query, then names with its words at the start
    of words, then other names, then starts and parts of IDs. Equal matches are in the order of the catalog.
    """
    query = query.strip()
    folded = fold(query)
    words = folded.split()

    def distance(item: Item) -> tuple[bool, ...] | None:
        own_id = query == item.id or (bool(folded) and folded == item.folded_id)
        begun = bool(words) and all(f" {word}" in f" {item.folded}" for word in words)
        named = bool(words) and all(word in item.folded for word in words)
        if not own_id and not (words and all(word in item.folded or word in item.folded_id for word in words)):
            return None
        starts = (text.startswith(folded) for text in (item.folded, item.folded_id))
        title_starts, id_starts = (bool(words) and start for start in starts)
        return query != item.id, not own_id, not title_starts, not begun, not named, not id_starts

    hits = [(place, item) for item in catalog.values() if (place := distance(item)) is not None]
    return [item for _, item in sorted(hits, key=lambda hit: hit[0])[:limit]]


def act(state: State, action: str, target: str, catalog: Mapping[str, Item]) -> State:
    """Return the state after a button is pressed. An impossible action changes nothing.

    Args:
        state: What was shown.
        action: add, put (at the masked place), explain, clear, remove, mask, earlier or later.
        target: Raw ID of the item to add, put or explain; unused by clear; for other actions, the key of the entry.
        catalog: Items that can be added.
    """
    history, masked, explained = state
    if action == "explain" and target in catalog:
        return State(history, masked, None if explained == target else target)
    if action == "put" and target in catalog and masked is not None:
        return State(tuple(Entry(key, target if key == masked else item) for key, item in history))
    if action == "add" and target in catalog:
        key = str(1 + max((int(entry.key) for entry in history), default=0))
        return State((*history, Entry(key, target)), masked)
    if action == "clear":
        return State()
    position = state.position(target)
    if position is None:
        return state
    if action == "mask":
        return State(history, None if masked == target else target)
    rest = history[:position] + history[position + 1 :]
    if action == "remove":
        return State(rest, None if masked == target else masked)
    place = max(0, position + {"earlier": -1, "later": 1}.get(action, 0))
    return State((*rest[:place], history[position], *rest[place:]), masked)


def recommend(
    recommender: NextItemRecommendationPipeline,
    history: Iterable[str],
    top_k: int = RECOMMENDATIONS,
    diversity: float = 0.0,
) -> list[Recommendation]:
    """Return the next items, best first; with `diversity` above 0, items that differ from each other."""
    return recommender([history], top_k=top_k, rerank=diversify(diversity) if diversity else None)[0]


def expect(
    recommender: NextItemRecommendationPipeline, history: Sequence[str], position: int, top_k: int = EXPECTATIONS
) -> list[Recommendation]:
    """Return the items that the model expects at a position of the history, 0 for the oldest item, best first."""
    return recommender.fill([[*history[:position], None, *history[position + 1 :]]], top_k=top_k)[0][0]


class Page:
    """HTML for a state. Every title and ID is escaped."""

    def __init__(self, recommender: NextItemRecommendationPipeline) -> None:
        self.recommender = recommender
        self.catalog = load_catalog(recommender)
        self._explained: tuple[Any, list[float]] = (None, [])
        self.template = Environment(
            loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
        ).get_template("page.html")

    def heading(self) -> str:
        """Name and purpose of the page."""
        return self._part("heading", items=len(self.catalog))

    def hits(self, query: str) -> str:
        """Results of the search."""
        return self._part("hits", query=query.strip(), hits=search(self.catalog, query))

    def history(self, state: State) -> str:
        """The history with its buttons and the expectations at the masked position, or items to start with."""
        position = state.position(state.masked)
        found = [] if position is None else expect(self.recommender, state.items, position, len(self.catalog))
        own = [(rank, row["score"]) for rank, row in enumerate(found, 1) if row["item"] == state.items[position or 0]]
        return self._part(
            "history",
            entries=[(entry.key, self.catalog[entry.item]) for entry in state.history],
            masked=state.masked,
            expected=found[:EXPECTATIONS],
            own=own[0] if own else None,
            factors=self.factors(state),
            explained=self.catalog.get(state.explained or ""),
            examples=list(self.catalog.values())[EXAMPLES],
        )

    def factors(self, state: State) -> list[float]:
        """How many times as likely the explained item is with each entry of the history as without it, or []."""
        if state.explained is None:
            return []
        known = self._explained  # both parts of the page show them
        if known[0] != (state.items, state.explained):
            rows = self.recommender.explain(state.items, state.explained)
            known = (state.items, state.explained), [math.exp(row["contribution"]) for row in rows]
            self._explained = known
        return known[1]

    def recommendations(self, state: State, diversity: float = 0.0) -> str:
        """The recommended items, and for the explained one its reasons and similar items."""
        factors = self.factors(state)
        best = sorted(zip(factors, state.items, strict=True), reverse=True)[:REASONS] if factors else []
        return self._part(
            "recommendations",
            rows=recommend(self.recommender, state.items, diversity=diversity),
            empty=not state.history,
            explained=state.explained,
            reasons=[(self.catalog[item], factor) for factor, item in best if factor > 1],
            similar=self.recommender.similar([state.explained], top_k=SIMILAR)[0] if state.explained else [],
        )

    def _part(self, name: str, **values: object) -> str:
        return str(getattr(self.template.module, name)(**values))


# A press on any button of a part is handled in Python, which replaces the HTML of all parts. Afterwards the pressed
# part is where it was on the screen, so that nothing jumps, and the focus is on the same button or entry.
PRESS = """
let pressed = null, top = 0, adding = false;
document.addEventListener('input', () => { adding = false; pressed = null; });  // typing keeps the focus
element.addEventListener('click', event => {
    const button = event.target.closest('button[data-action]');
    if (!button) return;
    const again = adding && event.detail > 1;  // the second click of a double click, with nothing typed in between
    adding = button.dataset.action === 'add';
    if (adding && again) return;
    pressed = {...button.dataset};
    top = element.getBoundingClientRect().top;
    trigger('press', pressed);
});
watch('value', () => {
    if (!pressed) return;
    const {action, key} = pressed;
    pressed = null;
    requestAnimationFrame(() => {
        window.scrollBy({top: element.getBoundingClientRect().top - top, behavior: 'instant'});
        const buttons = [...element.querySelectorAll('button[data-action]:enabled')];
        const same = buttons.filter(button => button.dataset.key === key);
        (same.find(button => button.dataset.action === action) ?? same[0])?.focus({preventScroll: true});
    });
});
"""
CLEAR = "(text, sent) => text === sent ? '' : text"  # what was typed while the item was added stays


def build(page: Page) -> "gr.Blocks":
    """Build the app: a search field and three parts of HTML whose buttons are handled by one function."""
    import gradio as gr  # not at the top, so that --help and the functions above work without it

    def show(state: State, query: str, diversity: float, added: bool) -> tuple:
        """Return the state, the query that is to be cleared because an item was added, and two parts."""
        return state, query if added else None, page.history(state), page.recommendations(state, diversity)

    def press(state: State, query: str, diversity: float, event: gr.EventData) -> tuple:
        new = act(state, str(event.action), str(event.key), page.catalog)
        return show(new, query, diversity, added=event.action == "add")

    def add_first(state: State, query: str, diversity: float) -> tuple:
        hits = search(page.catalog, query, limit=1)
        new = act(state, "add", hits[0].id, page.catalog) if hits else state
        return show(new, query, diversity, added=bool(hits))

    def slide(state: State, diversity: float) -> tuple:
        state = state._replace(explained=None)  # the explained item may leave the list
        return state, page.history(state), page.recommendations(state, diversity)

    def part(html: str) -> gr.HTML:
        return gr.HTML(html, js_on_load=PRESS, apply_default_css=False)

    start = State()
    with gr.Blocks(title="BERT4Rec", fill_width=True) as app:
        state = gr.State(start)
        part(page.heading())
        with gr.Row():
            with gr.Column(min_width=300):
                label = "Search by title or ID"
                query = gr.Textbox(label=label, placeholder=label, show_label=False, container=False, elem_id="search")
                hits = part(page.hits(""))
                history = part(page.history(start))
            with gr.Column(min_width=300):
                diversity = gr.Slider(0, MOST_DIVERSE, 0, step=0.1, label="Diversity of the list", elem_id="diversity")
                recommendations = part(page.recommendations(start))
        sent = gr.Textbox(visible="hidden")
        shown = [state, sent, history, recommendations]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        query.change(page.hits, [query], hits, trigger_mode="always_last", **quiet)
        added = [query.submit(add_first, [state, query, diversity], shown, **quiet)]
        diversity.change(
            slide, [state, diversity], [state, history, recommendations], trigger_mode="always_last", **quiet
        )
        for pressed in (hits, history, recommendations):
            added.append(pressed.press(press, [state, query, diversity], shown, trigger_mode="multiple", **quiet))
        for event in added:
            event.then(None, [query, sent], query, js=CLEAR, **quiet)
    return app


def main() -> None:
    """Serve the app."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "checkpoint folder or Hub ID (default: MODEL, or the released bert4rec-ml1m)"
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL") or str(RELEASED), help=text)
    model = parser.parse_args().model
    with plain_errors():
        import gradio as gr

        page = Page(hf_bert4rec.pipeline(model))
    theme = gr.themes.Base(primary_hue="indigo", font=["system-ui", "sans-serif"]).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_500",  # the default colors have too little contrast
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
    )
    build(page).launch(css_paths=HERE / "style.css", theme=theme, footer_links=[], run_history=False, ssr_mode=False)


if __name__ == "__main__":
    main()
