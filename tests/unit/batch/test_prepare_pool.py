"""Rows that are made ready in other processes."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from hpcserve.batch.formats.base import MalformedRowError, RawRow, Span
from hpcserve.batch.inputs import InputFile
from hpcserve.batch.prepare import usual_processes
from hpcserve.batch.prepare_pool import PreparePool
from hpcserve.batch.row import BatchRow, RowDialect
from hpcserve.batch.row_maker import MakerRecipe, RawChunk, RowMaker

HERE = Path(__file__).parent
DIALECT = RowDialect(fields={"/v1/completions": frozenset({"prompt", "seed"})})
Pool = Callable[..., PreparePool]


def _chunk(prompts: list[str], first: int = 0) -> RawChunk:
    lines = [json.dumps({"prompt": prompt}).encode() for prompt in prompts]
    rows = [(n, RawRow(n + 1, len(line), line)) for n, line in enumerate(lines)]
    return RawChunk(0, first, rows)


def importable(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipes, as a module that other processes find too."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    return importlib.import_module("poison_recipe")


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """Of one process or more."""
    recipes = importable(monkeypatch)
    inputs = [InputFile(tmp_path / "in.jsonl", "jsonl")]
    made: list[PreparePool] = []

    def start(num_processes: int = 1, *, broken: bool = False) -> PreparePool:
        recipe = MakerRecipe(inputs, None, DIALECT, recipes.PoisonRecipe(broken))
        here = RowMaker([inputs[0].reader(None)], DIALECT, recipes.PoisonPreparer())
        made.append(PreparePool(num_processes, recipe, here))
        return made[-1]

    yield start
    for one in made:
        one.close()


def _processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [one for one in children if "hpcserve.batch.prepare_child" in one.cmdline()]


def _texts(rows: list[BatchRow]) -> list[str]:
    return [row.failure.code if row.failure else row.request.payload[0] for row in rows]


def test_rows_come_back_in_order_from_other_processes(pool: Pool) -> None:
    pools = pool(2)
    chunks = [[f"row {n} of {c}" for n in range(50)] for c in range(8)]
    answers = [pools.submit(_chunk(one, first=50 * c)) for c, one in enumerate(chunks)]
    pids = set()
    for number, (chunk, answer) in enumerate(zip(chunks, answers, strict=True)):
        rows = answer.result(timeout=60)
        assert _texts(rows) == chunk
        assert [row.index for row in rows] == list(range(50 * number, 50 * number + 50))
        assert [row.line for row in rows] == list(range(1, 51))
        pids |= {row.request.payload[1] for row in rows}
    assert pids <= {one.pid for one in _processes()}
    assert pools.is_ready
    assert os.getpid() not in pids


def test_a_bad_row_is_its_own_failure(pool: Pool) -> None:
    rows = pool().submit(_chunk(["a", "refuse", "b"])).result(timeout=60)
    assert [row.failure is None for row in rows] == [True, False, True]
    assert rows[1].failure is not None
    assert (rows[1].failure.param, rows[1].failure.status) == ("prompt", 400)


def test_a_process_that_is_killed_is_named_and_its_rows_are_made(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    pools = pool()
    assert _texts(pools.submit(_chunk(["a"])).result(timeout=60)) == ["a"]
    (process,) = _processes()
    process.send_signal(signal.SIGKILL)
    assert _texts(pools.submit(_chunk(["b", "c"])).result(timeout=60)) == ["b", "c"]
    assert f"the preparation process {process.pid} is gone" in caplog.text
    assert "SIGKILL" in caplog.text


def test_a_row_that_kills_who_prepares_it_fails_and_the_others_do_not(pool: Pool) -> None:
    prompts = ["a", "b", "kill", "c", "d"]
    rows = pool().submit(_chunk(prompts)).result(timeout=120)
    assert _texts(rows) == ["a", "b", "preparation_killed", "c", "d"]
    assert rows[2].failure is not None
    assert "SIGKILL" in rows[2].failure.message
    assert rows[2].line == 3


def test_a_defect_is_raised_where_the_rows_are_taken(pool: Pool) -> None:
    with pytest.raises(AssertionError, match=f"in process {os.getpid()}"):
        pool().submit(_chunk(["a", "defect"])).result(timeout=60)


def test_where_no_process_can_be_had_threads_do_it(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pool(broken=True).submit(_chunk(["a"])).result(timeout=60)
    assert [row.request.payload for row in rows] == [("a", os.getpid())]
    assert "no tokenizer here" in caplog.text


def test_closing_ends_the_processes_and_cancels_what_waits(pool: Pool) -> None:
    pools = pool()
    answers = [pools.submit(_chunk(["a"] * 2000)) for _ in range(20)]
    assert answers[0].result(timeout=60)
    before = _processes()
    assert before
    pools.close()
    assert all(not one.is_running() for one in before)
    assert all(answer.done() for answer in answers)


_PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from poison_recipe import PoisonPreparer, PoisonRecipe
from hpcserve.batch.inputs import InputFile
from hpcserve.batch.prepare_pool import PreparePool
from hpcserve.batch.row import RowDialect
from hpcserve.batch.row_maker import MakerRecipe
inputs = [InputFile(Path("x.jsonl"), "jsonl")]
pool = PreparePool(2, MakerRecipe(inputs, None, RowDialect(fields={}), PoisonRecipe()), None)
while not pool.is_ready:
    time.sleep(0.01)
print("up", flush=True)
time.sleep(600)
"""


def test_no_process_outlives_a_parent_that_is_killed(pool: Pool) -> None:
    words = [sys.executable, "-c", _PARENT, str(HERE)]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


@pytest.mark.parametrize(
    ("rows", "size", "cores", "wanted"),
    [
        (20, 4000, 64, 0),  # a tiny file starts at once
        (20, 100 << 20, 64, 4),
        (1_000_000, 1 << 30, 2, 0),
        (1_000_000, 1 << 30, 8, 2),
    ],
)
def test_processes_are_for_files_that_are_worth_them(
    rows: int, size: int, cores: int, wanted: int
) -> None:
    assert usual_processes(rows, size, cores) == wanted


def test_rows_of_a_table_travel_as_arrow_and_only_their_own(tmp_path: Path) -> None:
    import pickle

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"prompt": [f"{n} " + "x" * 1000 for n in range(2048)]})
    pq.write_table(table, tmp_path / "in.parquet")
    reader: Any = InputFile(tmp_path / "in.parquet", "parquet").reader(None)
    raw = list(reader.rows(Span(0, 2048, [0, 0])))
    assert raw[300].num_bytes >= 1000
    sent = pickle.dumps(raw[256:384])
    assert len(sent) < 200_000
    assert [reader.decode(one) for one in pickle.loads(sent)] == table.to_pylist()[256:384]
    bad = pickle.loads(pickle.dumps(MalformedRowError("code", "message")))
    assert (bad.code, bad.message) == ("code", "message")
    reader.close()


def test_the_output_does_not_depend_on_who_prepares(
    tmp_path: Path, run: Callable[..., Any], engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not where one of the processes is killed meanwhile."""
    rows = [{"custom_id": f"id-{n}", "prompt": f"a {n} b"} for n in range(6000)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(source, tmp_path / "threads.jsonl", prepare_processes=0)
    assert len(engine.bodies) == 6000
    engine.bodies.clear()
    engine.recipe = importable(monkeypatch).EchoRecipe(HERE / "conftest.py")
    engine.delay_s = 0.01
    killed: list[psutil.Process] = []
    pools: list[PreparePool] = []
    answer = engine.answer

    class Noted(PreparePool):
        def __init__(self, *args: Any) -> None:
            pools.append(self)
            super().__init__(*args)

    monkeypatch.setattr("hpcserve.batch.prepare.PreparePool", Noted)

    async def answered(request: Any) -> Any:
        while len(engine.answered) > 7000 and not pools[0].is_ready:
            await asyncio.sleep(0.02)  # threads would make all there is
        if len(engine.answered) > 9000 and not killed and (found := _processes()):
            killed.append(found[0])
            found[0].kill()
        return await answer(request)

    engine.answer = answered
    result = run(source, tmp_path / "processes.jsonl", prepare_processes=2)
    assert result.num_ok == 6000
    assert len(engine.bodies) < 6000
    assert killed
    threads, processes = (tmp_path / f"{one}.jsonl" for one in ("threads", "processes"))
    assert threads.read_bytes() == processes.read_bytes()
    assert _processes() == []
