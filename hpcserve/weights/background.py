"""Weights are read while kernels and graphs are prepared: those need addresses, not values."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from hpcserve.log import get_logger
from hpcserve.weights.loader import LoadableModel, load_weights

logger = get_logger(__name__)


class _Model(LoadableModel, Protocol):
    def parameters(self) -> Any: ...


class FilledModel(AbstractContextManager["FilledModel"]):
    """Where there is nothing to wait for."""

    def wait(self) -> None:
        """At once."""

    def __exit__(self, *_: object) -> None:
        """Nothing runs."""


class BackgroundLoad:
    """A thread that fills a model's parameters; a context manager that ends it where the rest fails.

    On a GPU it copies on a stream of its own, and parameters are zero until they are filled: what
    runs on them meanwhile, to be measured or captured, computes nothing that is no number. Whoever
    lets it run must keep nothing of that: no KV, no tokens.
    """

    def __init__(self, model: _Model, files: list[Path], device: torch.device) -> None:
        self._model = model
        self._files = files
        self._device = device
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            with torch.inference_mode():
                for param in model.parameters():
                    param.zero_()
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._thread = threading.Thread(target=self._run, name="weights", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until every parameter is filled. Raises what reading them raised, WeightsError for one."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> BackgroundLoad:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is not self._error:
            logger.error("the weights could not be read either: %s", self._error)

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            if self._stream is None:
                self._load()
            else:
                torch.cuda.set_device(self._device)
                with torch.cuda.stream(self._stream):
                    self._load()
                self._stream.synchronize()
        except Exception as error:  # noqa: BLE001 - raised where the start waits for the weights
            self._error = error
        else:
            logger.info("read the weights in %.1f s", time.perf_counter() - started)

    def _load(self) -> None:
        with torch.inference_mode():
            load_weights(self._model, self._files, stop=self._stop)
