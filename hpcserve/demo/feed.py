"""Worker processes that make training rows while the device trains on those already made."""

from __future__ import annotations

import multiprocessing
import os
import queue
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from hpcserve.demo.data import training_stream
from hpcserve.demo.packing import pack

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

__all__ = ["Feed"]

_STOP_TIMEOUT_S = 10.0


class Feed:
    """Packed conversations on the device: new rows first, old ones while workers are busy."""

    def __init__(
        self,
        tokenizer_file: Path,
        seed: int,
        length: int,
        workers: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._queue: Queue[NDArray[np.int32]] = context.Queue(maxsize=4 * workers)
        self._rows = torch.empty(capacity, length, dtype=torch.int32, device=device)
        self._filled = 0
        self._next = 0
        self._generator = torch.Generator().manual_seed(seed)
        arguments = [
            (tokenizer_file, seed * 1000 + index + 1, length, self._queue)
            for index in range(workers)
        ]
        self._workers = [context.Process(target=_work, args=one, daemon=True) for one in arguments]
        for worker in self._workers:
            worker.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join(_STOP_TIMEOUT_S)

    @property
    def made(self) -> int:
        """Number of rows made so far."""
        return self._filled

    def wait_for(self, rows: int) -> None:
        """Block until ``rows`` rows are there."""
        while self._filled < rows:
            self._store(self._queue.get())

    def batch(self, rows: int) -> Tensor:
        """Return marked tokens of shape (rows, length): unseen rows if enough, else random ones."""
        self._take_arrived()
        if self._next + rows <= self._filled:
            self._next += rows
            return self._rows[self._next - rows : self._next]
        picked = torch.randint(self._filled, (rows,), generator=self._generator)
        return self._rows[picked.to(self._rows.device, non_blocking=True)]

    def _take_arrived(self) -> None:
        try:
            self._store(self._queue.get_nowait())
        except queue.Empty:
            return

    def _store(self, rows: NDArray[np.int32]) -> None:
        count = min(len(rows), len(self._rows) - self._filled)
        self._rows[self._filled : self._filled + count] = torch.from_numpy(rows[:count])
        self._filled += count


def _work(tokenizer_file: Path, seed: int, length: int, out: Queue[NDArray[np.int32]]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    stream = training_stream(seed)
    while True:
        out.put(pack(tokenizer, stream, length, rows=64))
