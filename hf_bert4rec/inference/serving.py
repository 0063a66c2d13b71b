"""The HTTP server: routes, limits of a request, and the process that serves a checkpoint."""

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
from contextlib import asynccontextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

try:
    import prometheus_client as prometheus
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
except ImportError as error:
    raise ImportError(f"The server needs the package {error.name}. Run `pip install 'hf-bert4rec[serve]'`.") from error

from .export import OnnxRecommender, is_export
from .service import (
    Load,
    Metrics,
    Problem,
    RecommendAnswer,
    RecommendRequest,
    Service,
    SimilarAnswer,
    SimilarRequest,
    Source,
)

logger = logging.getLogger(__name__)

MAX_BODY = 2**20  # bytes
MAX_CONNECTIONS = 2000
EXPORT_SECONDS = 1800.0  # after which an export, or the download before it, is given up
BODY_SECONDS = 10.0  # in which a request must have arrived
STOP_SECONDS = 20  # after a signal to stop, in which clients must have received their answers
CLOSE = {"connection": "close"}
EXPORT = """
import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
getattr(os, "nice", int)(10)
from hf_bert4rec.cli.main import main
main()
"""
"""Program of an export. It ends when the server ends, which closes its input. Its priority is low, for the requests."""


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
        except asyncio.CancelledError:
            logger.warning("A request was cancelled before the client received the whole answer.")
        except Exception as error:
            logger.error("A request failed with %s, so the status is 500.", type(error).__name__)
            await _problem(500, "The request failed. See the log of the server.")(scope, receive, send_and_note)
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, status).inc()
        self.metrics.seconds.labels(route).observe(time.perf_counter() - start)


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


async def _explain(request: Request, error: Any) -> JSONResponse:
    """Return the reasons why fields are invalid, without the values, which may be histories."""
    found = [f"{'.'.join(map(str, it['loc'][1:]))[:100] or 'body'}: {it['msg']}" for it in error.errors()[:5]]
    if "json" not in request.headers.get("content-type", ""):
        found.append("send the header Content-Type: application/json")
    text = re.sub(r"^(?=\d+: JSON)", "character ", "; ".join(found).replace(": Value error, ", ": "))
    return _problem(422, text.encode("utf-8", "replace").decode())


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
    app = FastAPI(title="hf-bert4rec", lifespan=working, responses=problems, redirect_slashes=False)
    app.state.service = service
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_middleware(_Limits, metrics=service.metrics)

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
        if Path(checkpoint).is_symlink():  # all files are of one checkpoint, also if the link changes in the meantime
            checkpoint = Path(checkpoint).resolve()
        if Path(checkpoint).is_absolute() and not Path(checkpoint).exists():  # before a process starts
            raise FileNotFoundError(f"{checkpoint}: found no such folder. Check the path.")
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
                last = done.stderr.strip().rpartition("\n")[2]
                _, is_error, reason = last.rpartition("error: ")
                found = f"the export ended with exit status {done.returncode} ({last or 'without a message'})"
                advice = f"Run `hf-bert4rec export {checkpoint} --output FOLDER`, and check the free memory."
                raise ValueError(reason if is_error else f"{checkpoint}: {found}. {advice}")
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
    if Path(checkpoint).exists():  # a later reload must not take the folder, if it is missing, for a Hub ID
        checkpoint = Path(checkpoint).absolute()
    missed: list[int] = []  # signals while the checkpoint is loaded

    def load() -> tuple[OnnxRecommender, str, str | None]:
        while True:
            missed.clear()
            loaded = load_for_serving(checkpoint, revision, modules)
            if not missed:
                return loaded

    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, _: missed.append(number))  # until the server listens
    # The handlers of uvicorn would ignore signals while the checkpoint is loaded, and Linux does so for process 1.
    usual = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app = create_app(load, reload_on_sighup=True)
    finally:
        signal.signal(signal.SIGTERM, usual)
    _allow_open_files(2 * MAX_CONNECTIONS)
    options: dict[str, Any] = {"access_log": False, "limit_concurrency": MAX_CONNECTIONS, "log_level": "info"}
    options["timeout_graceful_shutdown"] = STOP_SECONDS
    # One process, whatever WEB_CONCURRENCY says: an application that is loaded cannot be sent to several.
    uvicorn.run(app, host=host, port=port, workers=1, **options)


def _allow_open_files(number: int) -> None:
    """Raise the soft limit of open files of this process, as far as the hard limit allows. A connection is a file."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit, and a system may refuse a change
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
