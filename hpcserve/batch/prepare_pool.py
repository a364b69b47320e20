"""Processes that make rows ready beside this one, so that its interpreter is free for the engine.

Each has a thread here that gives it a chunk and takes the rows. One that dies is named and started
again, and its chunk is halved until the row that kills it is alone; that row fails, the rest is made.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from hpcserve.batch import prepare_child
from hpcserve.batch.row import BatchRow, Failure
from hpcserve.batch.row_maker import MakerRecipe, RawChunk, RowMaker, blank_row
from hpcserve.engine.supervisor import child_environment, exit_reason
from hpcserve.log import get_logger

log = get_logger(__name__)

#: Deaths in a row, with no chunk made in between, after which threads of this process go on.
_MAX_DEATHS = 8
_END_WAIT_S = 5.0


class PreparePool:
    """`is_ready` when a process is up; until then, and when none can be, `submit` is not for use.

    fallback: makes rows in this process, where the others cannot.
    """

    def __init__(self, num_processes: int, recipe: MakerRecipe, fallback: RowMaker) -> None:
        self.num_processes = num_processes
        self._recipe = recipe
        self._fallback = fallback
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, name=f"prepare-{number}", daemon=True)
            for number in range(num_processes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    def submit(self, chunk: RawChunk) -> Future[list[BatchRow]]:
        """The chunk's rows, in order, some time from now."""
        work = _Work(chunk)
        self._work.put(work)
        return work.rows

    def close(self) -> None:
        """End the processes; chunks that nobody made are cancelled."""
        self._closing.set()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(queue.Empty):
            while True:
                work = self._work.get_nowait()
                if work is not None:
                    work.rows.cancel()

    # ------------------------------------------------------------ one thread per process

    def _serve(self) -> None:
        child = _Child(self._recipe, self._ready)
        try:
            while (work := self._work.get()) is not None:
                if self._closing.is_set():
                    work.rows.cancel()
                elif work.rows.set_running_or_notify_cancel():
                    work.answer(partial(self._made, child, work.chunk))
        finally:
            child.close()

    def _made(self, child: _Child, chunk: RawChunk) -> list[BatchRow]:
        """Twice in a process; then by halves."""
        for _ in range(2):
            if child.num_deaths >= _MAX_DEATHS:
                return self._fallback.rows(chunk)
            rows = child.ask(chunk)
            if rows is not None:
                return rows
            if child.refused:
                # A defect, or a recipe that this machine cannot follow: here it says itself.
                return self._fallback.rows(chunk)
        if len(chunk.rows) == 1:
            child.num_deaths = 0  # we know what it was
            return [_killed(chunk, child.last_words)]
        half = len(chunk.rows) // 2
        parts = (chunk.rows[:half], chunk.rows[half:])
        made = [self._made(child, RawChunk(chunk.file, chunk.first, part)) for part in parts]
        return made[0] + made[1]


def _killed(chunk: RawChunk, last_words: str) -> BatchRow:
    number, raw = chunk.rows[0]
    row = blank_row(chunk, number, raw)
    why = f"the process that prepared it died each time: {last_words}"
    row.failure = Failure("preparation_killed", why, 500, "server_error")
    return row


class _Work:
    def __init__(self, chunk: RawChunk) -> None:
        self.chunk = chunk
        self.rows: Future[list[BatchRow]] = Future()

    def answer(self, make: Callable[[], list[BatchRow]]) -> None:
        try:
            rows = make()
        except Exception as error:  # noqa: BLE001 - raised where the rows are taken
            self.rows.set_exception(error)
        else:
            self.rows.set_result(rows)


class _Child:
    """The process of one thread, started anew when it has died."""

    def __init__(self, recipe: MakerRecipe, ready: threading.Event) -> None:
        self._recipe = recipe
        self._ready = ready
        self.num_deaths = 0
        self.last_words = ""
        #: It could not make its rows, and did not die of it.
        self.refused = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._start()

    def ask(self, chunk: RawChunk) -> list[BatchRow] | None:
        """None where the process died, or refused."""
        self.refused = False
        if self._connection is None and not self._start():
            return None
        try:
            answer = self._talk(chunk)
        except (EOFError, OSError):
            self._died()
            return None
        word, content = answer
        if word == prepare_child.FAILED:
            self.refused = True
            return None
        self.num_deaths = 0
        rows: list[BatchRow] = content
        return rows

    def close(self) -> None:
        self._disconnect()
        if self._process is None:
            return
        try:
            self._process.wait(_END_WAIT_S)
        except subprocess.TimeoutExpired:  # it is at a chunk that nobody wants
            self._process.kill()
            self._process.wait()

    def _start(self) -> bool:
        """Whether it is up."""
        ours, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", prepare_child.__name__, str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(its.fileno(),),
                start_new_session=True,
                env=child_environment(),
            )
        self._connection = Connection(os.dup(ours.fileno()))
        ours.close()
        try:
            word, content = self._talk(self._recipe)
        except (EOFError, OSError):
            self._died()
            return False
        if word == prepare_child.FAILED:
            log.warning("rows are prepared in this process: another could not: %s", content)
            self.refused = True
            self.num_deaths = _MAX_DEATHS
            self._disconnect()
        self._ready.set()
        return not self.refused

    def _talk(self, message: object) -> Any:
        if self._connection is None:
            raise EOFError
        self._connection.send(message)
        return self._connection.recv()

    def _died(self) -> None:
        self._disconnect()
        if self._process is None:
            return
        pid = self._process.pid
        self.num_deaths += 1
        self.last_words = exit_reason(self._process.wait())
        again = "another is started" if self.num_deaths < _MAX_DEATHS else "threads go on"
        log.warning("the preparation process %d is gone: %s; %s", pid, self.last_words, again)
        self._ready.set()  # whoever submits now gets its rows, if need be by the fallback

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
