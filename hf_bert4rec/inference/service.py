"""Answers of the server: raw IDs in, recommended items out.

Requests that arrive while others are scored wait, and are then scored together. Histories are never logged.
"""

import asyncio
import logging
import re
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, TypeAlias

import prometheus_client as prometheus
from fastapi import HTTPException
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from .export import OnnxRecommender
from .pipeline import NextItemRecommendationPipeline

logger = logging.getLogger(__name__)

MAX_HISTORIES, MAX_LENGTH, MAX_TOP_K, MAX_SIMILAR, MAX_ID = 64, 10_000, 1000, 64, 1000
MAX_BATCH = 32  # histories of several requests that are scored together; a larger request is scored alone
MAX_WAITING = 256  # histories, and as many items for which to find similar ones; more requests are refused
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which is not valid Unicode

Recommender: TypeAlias = NextItemRecommendationPipeline | OnnxRecommender
Load: TypeAlias = Callable[[], tuple[Recommender, str, str | None]]


def _whole(value: Any) -> Any:
    """Convert 10.0 to 10, because JSON does not distinguish the two."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_id(value: Any) -> str | int:
    """Accept text, and numbers without a fraction; the recommender converts them to text."""
    if not isinstance(value, str):
        if isinstance(number := _whole(value), int) and not isinstance(number, bool):
            return number
        raise ValueError("an item ID must be text or a whole number")
    if len(value) > MAX_ID or SURROGATE.search(value):
        raise ValueError(f"an item ID must have at most {MAX_ID} characters, all of them valid Unicode")
    return value


ID_SCHEMA = {"anyOf": [{"type": "string", "maxLength": MAX_ID}, {"type": "integer"}]}
ID = Annotated[str | int, PlainValidator(_read_id), WithJsonSchema(ID_SCHEMA)]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K), BeforeValidator(_whole)]
IDs = Annotated[list[ID], Field(max_length=MAX_LENGTH)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    def size(self) -> int:
        """Return the number of histories or items, at least 1."""
        _, first = next(iter(self))
        return max(1, len(first))


class RecommendRequest(_Request):
    """Histories of raw item IDs, oldest first, and options for all histories."""

    histories: Annotated[list[IDs], Field(max_length=MAX_HISTORIES, examples=[[["260", "1196"]]])]
    top_k: Annotated[TopK | None, Field(description="number of items (null: 10, or as the recommender says)")] = None
    allow: Annotated[IDs | None, Field(description="the only items to recommend")] = None
    deny: Annotated[IDs | None, Field(description="items not to recommend")] = None
    exclude_history: Annotated[bool | None, Field(description="exclude the history (null: as the model says)")] = None

    def group(self, recommender: Recommender) -> Any:
        """Return a value that requests have in common if they can be answered together."""
        lists = self.allow is not None, self.deny is not None
        # With rules, the first items of a list may depend on `top_k`.
        rules = "rerank" in getattr(recommender, "_postprocess_params", {})
        top_k = self.top_k if rules else self.top_k is not None
        # The lists of several histories are read once, not for each history.
        return id(self) if any(lists) and len(self.histories) != 1 else (top_k, self.exclude_history, *lists)

    def answers(self, requests: Sequence["RecommendRequest"], recommender: Recommender) -> list[dict[str, Any]]:
        """Return one answer for each request of the group of this request."""
        options: dict[str, Any] = {name: [getattr(it, name) for it in requests] for name in ("allow", "deny")}
        for name, lists in options.items():
            options[name] = lists[0] if lists[0] is None or len(lists) == 1 else lists
        top_k = self.top_k and max(it.top_k or 0 for it in requests)  # None for all or for none
        options |= {"top_k": top_k, "exclude_history": self.exclude_history}
        before = recommender.catalog.unknown
        found = iter(recommender([of for it in requests for of in it.histories], **options))
        answers = [{"recommendations": [next(found)[: it.top_k] for _ in it.histories]} for it in requests]
        searched = recommender.catalog.unknown > before  # not each time: it takes a fifth of the time of a request
        lists = [[*it.histories, it.allow or (), it.deny or ()] if searched else [] for it in requests]
        unknown = map(recommender.catalog.unknown_ids, lists)
        return [answer | {"unknown_ids": ids} for answer, ids in zip(answers, unknown, strict=True)]


class SimilarRequest(_Request):
    """Raw item IDs for which to find similar items, and the number of similar items per ID."""

    items: Annotated[list[ID], Field(max_length=MAX_SIMILAR, examples=[["260"]])]
    top_k: TopK = 10

    def group(self, _: Recommender) -> Any:
        """Return a value that no other request has, so that each request is answered alone."""
        return id(self)

    def answers(self, _: Any, recommender: Recommender) -> list[Any]:
        """Return the answer, or HTTPException, for this request."""
        try:
            recommender.catalog.known_rows(self.items, "items")
        except ValueError as error:  # an unknown item
            return [HTTPException(404, str(error))]
        return [{"similar": recommender.similar(self.items, self.top_k)}]


AnyRequest: TypeAlias = RecommendRequest | SimilarRequest
Waiting: TypeAlias = tuple[AnyRequest, asyncio.Future]


class Item(BaseModel):
    """An item. `score` is the probability that it is next, in `/similar` the cosine. `title` is null if unknown."""

    item: str
    title: str | None
    score: float


class Source(BaseModel):
    """The checkpoint that answered; `revision` is its commit on the Hub, null for a checkpoint from a local folder."""

    checkpoint: str
    revision: str | None


class RecommendAnswer(Source):
    """Recommended items for each history, best first. `unknown_ids` are skipped, because the model lacks them."""

    recommendations: list[list[Item]]
    unknown_ids: list[str]


class SimilarAnswer(Source):
    """Similar items for each requested item, most similar first."""

    similar: list[list[Item]]


class Problem(BaseModel):
    """Reason why a request was not answered."""

    detail: str


class Metrics:
    """Metrics that `GET /metrics` reports, in the format of Prometheus."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        counter = partial(prometheus.Counter, registry=self.registry)
        histogram = partial(prometheus.Histogram, registry=self.registry)
        powers = [2**n for n in range(14)]
        self.requests = counter("requests", "Requests, by route and status", ["route", "status"])
        self.seconds = histogram("request_seconds", "Seconds to answer", ["route"], buckets=[n / 1000 for n in powers])
        self.unknown = counter("unknown_ids", "IDs that were skipped, because the model does not contain them")
        self.batches = histogram("batch_histories", "Number of histories that were scored together", buckets=powers[:7])
        self.reloads = counter("reloads", "Reloads of the checkpoint", ["result"])


class Service:
    """A loaded recommender and the waiting requests, which are answered in one thread, in batches."""

    def __init__(self, load: Load) -> None:
        self.metrics = Metrics()
        self._load = load
        self._use(*load())
        self._waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._reloading, self._reload_waits = asyncio.Lock(), False
        self._thread = ThreadPoolExecutor(1, "scoring")

    def _use(self, recommender: Recommender, checkpoint: str, revision: str | None) -> None:
        recommender.catalog.report = False  # unknown IDs are part of histories, which are not logged
        self._recommender, self.source = recommender, {"checkpoint": checkpoint, "revision": revision}

    async def answer(self, request: AnyRequest) -> dict[str, Any]:
        """Answer a request, or raise HTTPException: 404 for an unknown item, 500 for an error, 503 if too many wait."""
        waiting = sum(it.size() for it, _ in self._waiting if type(it) is type(request))
        if waiting + request.size() > MAX_WAITING:
            raise HTTPException(503, "Too many requests are waiting. Try again later.", {"Retry-After": "1"})
        answered: asyncio.Future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answered))
        self._arrived.set()
        return await answered

    async def work(self) -> None:
        """Answer waiting requests in batches until cancelled, then refuse the rest."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = [self._waiting.popleft()]
            while self._waiting and sum(it.size() for it, _ in (*batch, self._waiting[0])) <= MAX_BATCH:
                batch.append(self._waiting.popleft())
            if not self._waiting:
                self._arrived.clear()
            recommender, source = self._recommender, self.source
            try:
                answers = await loop.run_in_executor(self._thread, self._score, recommender, batch)
            except asyncio.CancelledError:
                for _, answered in (*batch, *self._waiting):
                    if not answered.done():
                        answered.set_exception(HTTPException(503, "The server is stopping. Try again later."))
                self._thread.shutdown(wait=False)
                raise
            for answered, answer in answers:
                if answered.done():  # the client has gone
                    continue
                if isinstance(answer, HTTPException):
                    answered.set_exception(answer)
                else:
                    answered.set_result(source | answer)

    def _score(self, recommender: Recommender, batch: list[Waiting]) -> list[tuple[asyncio.Future, Any]]:
        """Return the future of each request with its answer or HTTPException."""
        if histories := sum(len(it.histories) for it, _ in batch if isinstance(it, RecommendRequest)):
            self.metrics.batches.observe(histories)
        groups: defaultdict[Any, list[tuple[Any, asyncio.Future]]] = defaultdict(list)
        for request, answered in batch:
            groups[request.group(recommender)].append((request, answered))
        answers: list[tuple[asyncio.Future, Any]] = []
        before = recommender.catalog.unknown
        for group in groups.values():
            try:
                found = group[0][0].answers([request for request, _ in group], recommender)
            except BaseException as error:  # such as NaN as a score, or a panic of a library; the server must go on
                text = "Scoring failed with %s (status 500). The message may contain histories and is not logged. %s"
                logger.error(text, type(error).__name__, "To see it, call the recommender in Python.")
                # A cause is an error in a function of the owner, such as a rule. Clients must not see its text.
                public = isinstance(error, ValueError) and error.__cause__ is None
                reason = str(error) if public else "Scoring failed. See the log of the server."
                found = [HTTPException(500, reason)] * len(group)
            answers += zip([answered for _, answered in group], found, strict=True)
        self.metrics.unknown.inc(recommender.catalog.unknown - before)
        return answers

    async def reload(self) -> None:
        """Load the checkpoint again for the next batches. If loading fails, keep the old checkpoint.

        Calls during a reload lead to one more reload, whatever their number.
        """
        if self._reload_waits:
            return
        self._reload_waits = True
        async with self._reloading:
            self._reload_waits = False
            try:
                self._use(*await asyncio.get_running_loop().run_in_executor(None, self._load))
                result = "loaded"
            except Exception as error:
                logger.error("Reloading failed. The loaded checkpoint stays in use. Reason: %s", error)
                result = "failed"
            self.metrics.reloads.labels(result).inc()
            logger.info("In use: checkpoint %s", ", revision ".join(filter(None, self.source.values())))
