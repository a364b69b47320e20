"""What `hpcserve batch` itself costs: a run whose engine answers at once.

    python benchmarks/batch_pipeline.py --rows 1000000 --format jsonl

Every row is scanned, read, decoded, given its parameters and seed, put in the window, answered,
journaled, committed and merged, as in a real run; the engine is a function that returns the prompt.
With `--tokenize`, rows are also put through the chat template and the tokenizer of the bundled
model, in threads or (`--prepare-processes N`) in other processes.
Prints one JSON object: rows a second by the clock and by the processor time of all threads, what
other processes took of it, and the peak of resident memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import platform
import resource
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

from hpcserve.batch.client_engine import ClientRecipe
from hpcserve.batch.engine import EngineLimits, PreparedRequest, RowAnswer
from hpcserve.batch.row import CHAT_URL, COMPLETION_URL
from hpcserve.batch.run import run_batch
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verify import verify_run
from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.model_folder import with_model_folder

_FIELDS = frozenset({"model", "max_tokens", "temperature", "seed"})


class Engine:
    """Answers each row in the same turn of the event loop."""

    limits = EngineLimits(max_running_requests=256, max_total_tokens=1 << 20)
    model_names = frozenset({"echo"})
    recipe = None

    def __init__(self) -> None:
        self.preparer = self
        self.num_answers = 0

    def text_of(self, request: PreparedRequest) -> str:
        return request.payload

    def prepare(self, url: str, body: dict) -> PreparedRequest:
        text = body["messages"][-1]["content"] if url == CHAT_URL else body["prompt"]
        return PreparedRequest(len(text) // 4 + 1, text, text[:64].encode())

    async def answer(self, request: PreparedRequest) -> RowAnswer:
        self.num_answers += 1
        text = self.text_of(request)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        body = {"object": "chat.completion", "choices": [{**choice, "finish_reason": "stop"}]}
        return RowAnswer(body, len(text) // 4, len(text) // 4, 0)

    async def num_steps(self) -> int:
        return self.num_answers


class TokenizingEngine(Engine):
    """Rows are prepared as for the bundled model; the answer is always the same."""

    def __init__(self) -> None:
        super().__init__()
        options = with_model_folder(EngineConfig()).to_options()
        self.recipe = ClientRecipe(options, {})
        self.preparer = self.recipe.make()

    def text_of(self, request: PreparedRequest) -> str:
        return "An answer of the length that a short one has."


class Backend:
    def __init__(self, engine: type[Engine]) -> None:
        self._engine = engine

    fields: ClassVar = {CHAT_URL: _FIELDS | {"messages"}, COMPLETION_URL: _FIELDS | {"prompt"}}
    sampling_fields = _FIELDS
    num_gpus = 0

    def content(self) -> dict:
        return {"model": {"name": "echo"}, "template": {}}

    @asynccontextmanager
    async def open(self):
        yield self._engine()


def write_rows(path: Path, num_rows: int) -> None:
    """OpenAI batch lines of some 300 bytes, or the same rows as Parquet."""
    text = "Summarise in one sentence what this paragraph says about subject %d. " * 2
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        schema = pa.schema([("custom_id", pa.string()), ("messages", kind)])
        with pq.ParquetWriter(path, schema) as writer:
            for first in range(0, num_rows, 50_000):
                numbers = range(first, min(num_rows, first + 50_000))
                ids = [f"request-{n}" for n in numbers]
                rows = [[{"role": "user", "content": text % (n, n)}] for n in numbers]
                writer.write_table(pa.table({"custom_id": ids, "messages": rows}, schema))
        return
    with path.open("w", encoding="utf-8") as stream:
        for n in range(num_rows):
            messages = [{"role": "user", "content": text % (n, n)}]
            row = {"custom_id": f"request-{n}", "method": "POST", "url": CHAT_URL}
            stream.write(json.dumps({**row, "body": {"messages": messages}}) + "\n")


def cpu_of(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--format", choices=["jsonl", "parquet"], default="jsonl")
    parser.add_argument("--folder", help="where the files go; default: a temporary one")
    parser.add_argument(
        "--tokenize", action="store_true", help="with the bundled model's tokenizer"
    )
    parser.add_argument("--prepare-processes", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder) / f"in.{options.format}"
        output = Path(folder) / f"out.{options.format}"
        # In a process of its own, so that what it takes of memory is not counted.
        if (pid := os.fork()) == 0:
            write_rows(source, options.rows)
            os._exit(0)
        os.waitpid(pid, 0)
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        batch = BatchConfig(inputs=(str(source),), output=str(output))
        batch = dataclasses.replace(batch, prepare_processes=options.prepare_processes)
        backend = Backend(TokenizingEngine if options.tokenize else Engine)
        before, started = time.process_time(), time.perf_counter()
        result = run_batch(backend, batch, RowDefaults(), stream=io.StringIO())
        others = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - before
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        problems = verify_run(RunDir.of_output(output)).problems
        print(
            json.dumps(
                {
                    "rows": result.num_ok,
                    "format": options.format,
                    "input_bytes": source.stat().st_size,
                    "wall_s": round(wall_s, 2),
                    "cpu_s": round(cpu_s, 2),
                    "tokenized": options.tokenize,
                    "prepare_processes": options.prepare_processes,
                    "cpu_s_of_other_processes": round(cpu_of(others) - cpu_of(began), 2),
                    "rows_per_wall_s": round(result.num_ok / wall_s),
                    "rows_per_cpu_s": round(result.num_ok / cpu_s),
                    "peak_rss_mib": round(peak_kib / 1024),
                    "verify": problems or "every row has exactly one output",
                    "python": platform.python_version(),
                }
            )
        )


if __name__ == "__main__":
    main()
