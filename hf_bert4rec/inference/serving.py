"""Answer requests over HTTP: raw IDs in, recommended items out.

Requests that arrive while others are scored wait, and are then scored together. Histories are never logged.
"""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, TypeAlias

try:
    import prometheus_client as prometheus
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
except ImportError as error:
    raise ImportError(f"The server needs the package {error.name}. Run `pip install 'hf-bert4rec[serve]'`.") from error

from .export import OnnxRecommender, is_export
from .pipeline import NextItemRecommendationPipeline

logger = logging.getLogger(__name__)

MAX_BODY = 2**20  # bytes
MAX_HISTORIES, MAX_LENGTH, MAX_TOP_K, MAX_SIMILAR, MAX_ID = 64, 10_000, 1000, 64, 1000
MAX_BATCH = 32  # histories that are scored together
MAX_WAITING = 256  # histories, and as many items for which to find similar ones; more requests are refused
MAX_CONNECTIONS = 2000
EXPORT_SECONDS = 1800.0  # after which an export, or the download before it, is given up
BODY_SECONDS = 10.0  # in which a request must have arrived
CLOSE = {"connection": "close"}
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which is not valid Unicode
EXPORT = """
import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
getattr(os, "nice", int)(10)
from hf_bert4rec.cli.main import main
main()
"""
"""Program of an export. It ends when the server ends, which closes its input. Its priority is low, for the requests."""

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


class RecommendRequest(_Request):
    """Histories of raw item IDs, oldest first, and options for all histories."""

    histories: Annotated[list[IDs], Field(max_length=MAX_HISTORIES, examples=[[["260", "1196"]]])]
    top_k: TopK = 10
    allow: Annotated[IDs | None, Field(description="the only items to recommend")] = None
    deny: Annotated[IDs | None, Field(description="items not to recommend")] = None
    exclude_history: Annotated[bool | None, Field(description="exclude the history (null: as the model says)")] = None


class SimilarRequest(_Request):
    """Raw item IDs for which to find similar items, and the number of similar items per ID."""

    items: Annotated[list[ID], Field(max_length=MAX_SIMILAR, examples=[["260"]])]
    top_k: TopK = 10


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
    """Recommended items for each history, best first."""

    recommendations: list[list[Item]]


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
        self._reloading = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "scoring")

    def _use(self, recommender: Recommender, checkpoint: str, revision: str | None) -> None:
        recommender.catalog.report = False  # unknown IDs are part of histories, which are not logged
        self._recommender, self.source = recommender, {"checkpoint": checkpoint, "revision": revision}

    async def answer(self, request: AnyRequest) -> dict[str, Any]:
        """Answer a request, or raise HTTPException: 404 for an unknown item, 500 for an error, 503 if too many wait."""
        same = [waiting for waiting, _ in self._waiting if type(waiting) is type(request)]
        if sum(map(_size, same)) + _size(request) > MAX_WAITING:
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
            while self._waiting and sum(_size(it) for it, _ in (*batch, self._waiting[0])) <= MAX_BATCH:
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
        """Return the future of each request with its answer or HTTPException.

        Requests with the same `exclude_history` are scored together, those with and without `allow`, `deny` separately.
        """
        if histories := sum(len(it.histories) for it, _ in batch if isinstance(it, RecommendRequest)):
            self.metrics.batches.observe(histories)
        groups: dict[Any, list[Waiting]] = {}
        for number, (request, answered) in enumerate(batch):
            key: Any = number
            if isinstance(request, RecommendRequest):
                lists = request.allow is not None, request.deny is not None
                # The lists of several histories are read once, not for each history.
                key = number if any(lists) and len(request.histories) != 1 else (request.exclude_history, *lists)
            groups.setdefault(key, []).append((request, answered))
        answers: list[tuple[asyncio.Future, Any]] = []
        before = recommender.catalog.unknown
        for group in groups.values():
            try:
                found = _answer(recommender, [request for request, _ in group])
            except BaseException as error:  # such as NaN as a score, or a panic of a library; the server must go on
                text = "Scoring failed with %s (status 500). The message may contain histories and is not logged. %s"
                logger.error(text, type(error).__name__, "To see it, call the recommender in Python.")
                reason = str(error) if isinstance(error, ValueError) else "Scoring failed. See the log of the server."
                found = [HTTPException(500, reason)] * len(group)
            answers += zip([answered for _, answered in group], found, strict=True)
        self.metrics.unknown.inc(recommender.catalog.unknown - before)
        return answers

    async def reload(self) -> None:
        """Load the checkpoint again for the next batches. If loading fails, keep the old checkpoint."""
        async with self._reloading:
            try:
                self._use(*await asyncio.get_running_loop().run_in_executor(None, self._load))
                result = "loaded"
            except Exception as error:
                logger.error("Reloading failed. The loaded checkpoint stays in use. Reason: %s", error)
                result = "failed"
            self.metrics.reloads.labels(result).inc()
            logger.info("In use: checkpoint %s", ", revision ".join(filter(None, self.source.values())))


def _size(request: AnyRequest) -> int:
    return max(1, len(request.histories if isinstance(request, RecommendRequest) else request.items))


def _answer(recommender: Recommender, requests: list[Any]) -> list[Any]:
    """Return one answer per request, for recommendations with the same `exclude_history`, or for one `SimilarRequest`.

    The requests may have different `top_k`. They have the same lists of options: all or none have `allow`, and all or
    none have `deny`. If there are several requests with lists, each has one history.
    """
    first = requests[0]
    if isinstance(first, SimilarRequest):
        try:
            return [{"similar": recommender.similar(first.items, first.top_k)}]
        except ValueError as error:
            return [HTTPException(404, str(error))]
    options: dict[str, Any] = {"exclude_history": first.exclude_history, "top_k": max(it.top_k for it in requests)}
    for name in ("allow", "deny"):
        lists = [getattr(request, name) for request in requests]
        options[name] = lists[0] if lists[0] is None or len(lists) == 1 else lists
    found = iter(recommender([history for request in requests for history in request.histories], **options))
    return [{"recommendations": [next(found)[: it.top_k] for _ in it.histories]} for it in requests]


class _Limits:
    """ASGI middleware that refuses too large or slow requests, counts requests and measures their times."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, app, body = time.perf_counter(), 500, self.app, bytearray()
        message: Any = {"more_body": True}
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while message.get("more_body") and len(body) <= MAX_BODY:
                    message = await receive()
                    body += message.get("body", b"")
        except TimeoutError:
            app = _problem(408, f"The request did not arrive within {BODY_SECONDS:.0f} seconds. Send it again.", CLOSE)
        if len(body) > MAX_BODY:
            app = _problem(413, f"The request has more than {MAX_BODY:,} bytes. Send fewer or shorter lists.", CLOSE)
        unread = deque([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def receive_body() -> dict[str, Any]:
            return unread.popleft() if unread else await receive()

        async def send_and_note(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await app(scope, receive_body, send_and_note)
        except Exception as error:
            logger.error("A request failed with %s, so the status is 500.", type(error).__name__)
            await _problem(500, "The request failed. See the log of the server.")(scope, receive, send_and_note)
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, status).inc()
        self.metrics.seconds.labels(route).observe(time.perf_counter() - start)


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


def create_app(load: Load, reload_on_sighup: bool = False) -> FastAPI:
    """Return the ASGI application.

    Args:
        load: Function that loads the recommender, now and at each reload. It returns a tuple of the recommender, and
            the name and the revision (or None) of its checkpoint for the answers.
        reload_on_sighup: Whether to load the recommender again on the signal SIGHUP. Possible in the main thread only.
    """
    service = Service(load)

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(service.work())]  # keeps a reference, which asyncio does not
        if reload_on_sighup and hasattr(signal, "SIGHUP"):
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, lambda: tasks.append(asyncio.create_task(service.reload())))
        yield
        tasks[0].cancel()

    problems: Any = {status: {"model": Problem} for status in (400, 404, 408, 413, 422, 500, 503)}
    app = FastAPI(title="hf-bert4rec", lifespan=working, responses=problems)
    app.state.service = service
    app.add_middleware(_Limits, metrics=service.metrics)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        # Without the values, which may be histories.
        found = [f"{'.'.join(map(str, it['loc'][1:]))[:100] or 'body'}: {it['msg']}" for it in error.errors()[:5]]
        if "json" not in request.headers.get("content-type", ""):
            found.append("send the header Content-Type: application/json")
        text = re.sub(r"^(?=\d+: JSON)", "character ", "; ".join(found).replace(": Value error, ", ": "))
        return _problem(422, text.encode("utf-8", "replace").decode())

    @app.post("/recommend", response_model=RecommendAnswer)
    async def recommend(request: RecommendRequest) -> Response:
        """Recommend the next items for histories."""
        return JSONResponse(await service.answer(request))

    @app.post("/similar", response_model=SimilarAnswer)
    async def similar(request: SimilarRequest) -> Response:
        """Find items with similar vectors; `score` is the cosine."""
        return JSONResponse(await service.answer(request))

    @app.get("/health", responses={200: {"content": {"application/json": {"example": {"status": "running"}}}}})
    async def health() -> dict[str, str]:
        """Report that the process answers."""
        return {"status": "running"}

    @app.get("/ready", response_model=Source)
    async def ready() -> Response:
        """Return the checkpoint in use. The server listens only after the checkpoint is loaded."""
        return JSONResponse(service.source)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return metrics for Prometheus."""
        return Response(prometheus.generate_latest(service.metrics.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    return app


def load_for_serving(
    checkpoint: str | PathLike, revision: str | None = None, modules: Sequence[str] = ()
) -> tuple[OnnxRecommender, str, str | None]:
    """Load an exported folder, or export a checkpoint in a process of its own, and check that it recommends.

    `checkpoint` is a folder, a Hub ID with its `revision` (branch, tag or commit), or a folder that `export_checkpoint`
    wrote. `modules` are names of modules that register your own models. Returns the recommender, and name and revision
    of the checkpoint, as `create_app` needs them. Errors are OSError or ValueError, also if the export failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(checkpoint)
        if not is_export(exported):
            exported = Path(folder, "export")
            words = ["export", str(checkpoint), "--output", str(exported)]
            words += ["--revision", revision] if revision else []
            words += [word for module in modules for word in ("--import", module)]
            logger.info("Exporting %s to ONNX. This takes about ten seconds on a free core.", checkpoint)
            command = [sys.executable, "-c", EXPORT, *words]
            options: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
            source, sink = os.pipe()  # `sink` is closed when this process ends, however it ends
            try:
                done = subprocess.run(command, stdin=source, timeout=EXPORT_SECONDS, **options)
            except subprocess.TimeoutExpired as error:
                advice = f"Run `hf-bert4rec export {checkpoint} --output FOLDER`, then serve FOLDER."
                raise TimeoutError(f"{checkpoint}: the export took over {error.timeout:.0f} s. {advice}") from error
            finally:
                os.close(source)
                os.close(sink)
            if done.returncode:
                reason = done.stderr.strip().rpartition("\n")[2].rpartition("error: ")[2]
                found = f"the export ended with exit status {done.returncode}, without a message"
                advice = f"Run `hf-bert4rec export {checkpoint} --output FOLDER`, and check the free memory."
                raise ValueError(reason or f"{checkpoint}: {found}. {advice}")
        recommender = OnnxRecommender(exported)
    recommender([[]])  # damaged weights must not replace a model that works
    return recommender, recommender.facts["checkpoint"], recommender.facts["revision"]


def serve(
    checkpoint: str | PathLike,
    host: str = "127.0.0.1",
    port: int = 8000,
    revision: str | None = None,
    modules: Sequence[str] = (),
) -> None:
    """Serve a checkpoint at an address until the process is stopped. The signal SIGHUP loads it again.

    The server has no authentication: put a proxy in front of it. Other arguments and errors: see `load_for_serving`.
    """
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server listens
    # The handlers of uvicorn would ignore signals while the checkpoint is loaded, and Linux does so for process 1.
    usual = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app = create_app(lambda: load_for_serving(checkpoint, revision, modules), reload_on_sighup=True)
    finally:
        signal.signal(signal.SIGTERM, usual)
    options: dict[str, Any] = {"access_log": False, "limit_concurrency": MAX_CONNECTIONS, "log_level": "info"}
    # One process, whatever WEB_CONCURRENCY says: an application that is loaded cannot be sent to several.
    uvicorn.run(app, host=host, port=port, workers=1, **options)
