"""What every endpoint needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fastapi import Request

from hpcserve import envs
from hpcserve.config.server import ServerConfig
from hpcserve.engine.client import EngineClient
from hpcserve.errors import ModelNotFoundError
from hpcserve.server.flusher import Flusher
from hpcserve.server.request_metrics import RequestMetrics
from hpcserve.server.time_left import TimeLeft
from hpcserve.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")

#: Bodies beyond this are tokenised in a thread; below, changing threads costs more than the work.
_LONG_BODY_BYTES = 8192
#: SGLang's clients write this when they do not care.
_ANY_MODEL = "default"


@dataclass(frozen=True)
class ServerContext:
    """model_name: what clients see; model_path: the folder it is served from."""

    client: EngineClient
    model_name: str
    model_path: str
    started_s: int
    options: ServerConfig
    metrics: RequestMetrics
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="tokenizer")
    )

    flusher: Flusher = field(default_factory=Flusher)
    time_left: TimeLeft = field(default_factory=lambda: TimeLeft(envs.HPCSERVE_DEADLINE_FILE.get()))

    @property
    def tokenizer(self) -> Tokenizer:
        return self.client.tokenizer

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFoundError for a model that is not served here."""
        known = {self.model_name, self.model_path, Path(self.model_path).name, _ANY_MODEL}
        if name and name not in known:
            raise ModelNotFoundError(
                f"there is no model {name!r} here; this server has {self.model_name!r}"
            )

    async def tokenize(self, size_bytes: int, work: Callable[[], T]) -> T:
        """Run `work`, in a thread where it may take long."""
        if size_bytes < _LONG_BODY_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)


def context_of(request: Request) -> ServerContext:
    context: ServerContext = request.app.state.context
    return context
