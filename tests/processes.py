"""Processes that tests start, and their ports. Nothing here imports torch."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

RESERVED: list[socket.socket] = []


def reserve_port() -> int:
    """A port of this process's own. On Linux its socket stays open, and one server can share it (SO_REUSEADDR)."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    RESERVED.append(reserved) if sys.platform == "linux" else reserved.close()
    return port


@contextlib.contextmanager
def started(command: list, **options) -> Iterator[subprocess.Popen]:
    """A process in a session of its own. The session is killed at the end, whatever happens."""
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Wait for what a process does. Fail if it ends before, or takes minutes."""
    for _ in range(12_000):
        if condition():
            return
        assert process.poll() is None, "the process ended too early"
        time.sleep(0.01)
    pytest.fail("the process took longer than two minutes")
