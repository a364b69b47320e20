"""An engine without processes: what the runner is given, and what the machine is not asked for."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hpcserve.batch.engine import EngineLimits, PreparedRequest, RowAnswer
from hpcserve.batch.report import RunResult
from hpcserve.batch.row import CHAT_URL, COMPLETION_URL
from hpcserve.batch.run import run_batch
from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.errors import ContextLengthError, EngineDeadError, InvalidParameterError

_FIELDS = frozenset(
    {"model", "max_tokens", "max_completion_tokens", "temperature", "seed", "top_p", "stop", "n"}
)


class EchoEngine:
    """Answers with the words of the prompt in reverse, after a few turns of the event loop.

    Longer prompts take longer, so rows end in another order than they came in.
    """

    limits = EngineLimits(max_running_requests=16, max_total_tokens=4096)
    model_names = frozenset({"echo"})
    recipe = None
    context_length = 100

    def __init__(self) -> None:
        self.preparer = self
        self.num_running = 0
        self.answered: list[str] = []
        self.num_started = 0
        self.poison = ""
        self.max_running = 0
        self.max_tokens_running = 0
        self.bodies: list[dict[str, Any]] = []
        self.die_after: int | None = None
        self.delay_s = 0.0

    def prepare(self, url: str, body: dict[str, Any]) -> PreparedRequest:
        self.bodies.append(body)
        if url == CHAT_URL:
            text = body["messages"][-1]["content"]
        else:
            text = body["prompt"]
        if not isinstance(text, str):
            raise InvalidParameterError("prompt", "no text")
        words = text.split()
        if len(words) > self.context_length:
            raise ContextLengthError(len(words), None, self.context_length)
        return PreparedRequest(len(words), (url, words), text[:8].encode())

    async def num_steps(self) -> int:
        return len(self.answered)

    async def answer(self, request: PreparedRequest) -> RowAnswer:
        url, words = request.payload
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            await asyncio.sleep(self.delay_s)
            for _ in range(len(words) % 7):
                await asyncio.sleep(0)
        finally:
            self.num_running -= 1
        if self.die_after is not None:
            self.die_after -= 1
            if self.die_after < 0:
                raise EngineDeadError("the engine is gone (core): told to die")
        if self.poison and self.poison in words:
            raise EngineDeadError(f"the engine is gone (core): {self.poison}")
        if "poison" in words:
            raise InvalidParameterError("prompt", "poison")
        text = " ".join(reversed(words))
        self.answered.append(text)
        choice = {"index": 0, "finish_reason": "stop"}
        if url == CHAT_URL:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        body = {"choices": [choice], "usage": {"completion_tokens": len(words)}}
        return RowAnswer(body, len(words), len(words), len(words) // 2)


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


class EchoBackend:
    """Gives the same engine each time it is opened."""

    fields: ClassVar = {CHAT_URL: _FIELDS | {"messages"}, COMPLETION_URL: _FIELDS | {"prompt"}}
    sampling_fields = _FIELDS
    num_gpus = 0

    def __init__(self, engine: EchoEngine) -> None:
        self.engine = engine
        self.model: dict[str, Any] = {"files": "echo"}

    def content(self) -> dict[str, dict[str, Any]]:
        return {"model": dict(self.model), "template": {}}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EchoEngine]:
        self.engine.num_started += 1
        yield self.engine


@pytest.fixture
def backend(engine: EchoEngine) -> EchoBackend:
    return EchoBackend(engine)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes an input of completions; `{n}` in the text is the row's number."""

    def write_rows(num_rows: int, text: str = "a {n} b") -> Path:
        path = tmp_path / "in.jsonl"
        rows = [{"custom_id": f"id-{n}", "prompt": text.format(n=n)} for n in range(num_rows)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_rows


@pytest.fixture
def source(write_rows: Callable[..., Path]) -> Path:
    """500 rows."""
    return write_rows(500)


@pytest.fixture
def write_lines() -> Callable[..., Path]:
    """Writes a row a line: JSON, or bytes as they are."""

    def write_lines(path: Path, rows: list[Any]) -> Path:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write_lines


@pytest.fixture
def read_lines() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads what was answered, a line a row."""

    def read_lines(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    return read_lines


class Clock:
    """Time that goes by when a test says so, however slow the machine is."""

    def __init__(self) -> None:
        self.now_s = 1e9

    def monotonic(self) -> float:
        return self.now_s

    time = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of rows, their engine and the end of the run."""
    clock = Clock()
    for module in ("deadline", "runner", "watch"):
        monkeypatch.setattr(f"hpcserve.batch.{module}.time", clock)
    return clock


Run = Callable[..., RunResult]


@pytest.fixture
def run(backend: EchoBackend) -> Run:
    """A whole run with the engine of this test."""

    def run(
        source: Path | str | list[str],
        output: Path | str,
        defaults: RowDefaults | None = None,
        seed: int = 0,
        stream: Any = None,
        **options: Any,
    ) -> RunResult:
        inputs = tuple(source) if isinstance(source, list) else (str(source),)
        return run_batch(
            backend,
            BatchConfig(inputs=inputs, output=str(output), **options),
            defaults or RowDefaults(),
            seed=seed,
            stream=stream or io.StringIO(),
        )

    return run
