"""Runs a batch over and over, and kills it with SIGKILL in the middle of system calls.

    python storm_child.py INPUT OUTPUT ANSWERS SEED KILLS

Each attempt is a fork, so that Python starts once. An attempt counts its writes, syncs, links and
renames, and dies at a random one: before it, after it, or with half of a write done. ANSWERS gets
a line for each row that the engine answered. Prints a JSON object for each attempt.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

from hpcserve.batch import ledger
from hpcserve.batch.run import run_batch
from hpcserve.config.batch import BatchConfig, RowDefaults

_WATCHED = ("write", "fsync", "link", "replace", "unlink")
IN_FLIGHT = 48
FLUSH_BYTES = 4096


def _engines() -> Any:
    path = Path(__file__).parent / "conftest.py"
    spec = importlib.util.spec_from_file_location("engines", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch_calls(kill_at: int, draw: random.Random) -> dict[str, int]:
    """Die at the call of this number. Returns the counter, which goes on."""
    counter = {"calls": 0}

    def wrapped(name: str, call: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            counter["calls"] += 1
            if counter["calls"] != kill_at:
                return call(*args, **kwargs)
            how = draw.randrange(3)
            if how == 1 and name == "write":
                call(args[0], bytes(args[1])[: draw.randrange(len(args[1]) + 1)])
            elif how:
                call(*args, **kwargs)
            return _die()

        return watched

    for name in _WATCHED:
        setattr(os, name, wrapped(name, getattr(os, name)))
    return counter


def attempt(source: str, output: str, answers: str, kill_at: int, seed: int) -> int:
    """In the fork: a whole run, or what happens of it."""
    engines = _engines()
    engine = engines.EchoEngine()
    log = os.open(answers, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    write, answer = os.write, engine.answer

    async def answered(request: Any) -> Any:
        found = await answer(request)
        write(log, request.payload[1][0].encode() + b"\n")
        return found

    engine.answer = answered
    ledger._FLUSH_BYTES = FLUSH_BYTES
    counter = watch_calls(kill_at, random.Random(seed))
    batch = BatchConfig(
        inputs=(source,), output=output, shard_rows=200, max_rows_in_flight=IN_FLIGHT
    )
    with open(os.devnull, "w") as stream:
        run_batch(engines.EchoBackend(engine), batch, RowDefaults(), stream=stream)
    return counter["calls"]


def fork_attempt(*args: Any) -> tuple[int, int]:
    """Signal that ended it (0: none), and its number of calls where it lived."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        write = os.write
        try:
            write(writer, str(attempt(*args)).encode())
        except BaseException as error:  # noqa: BLE001 - the fork must end here
            print(type(error).__name__, error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    said = os.read(reader, 20)
    os.close(reader)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"an attempt ended with {os.WEXITSTATUS(status)}")
    return os.WTERMSIG(status), int(said or 0)


def main() -> None:
    source, output, answers, seed, kills = sys.argv[1:]
    draw = random.Random(int(seed))
    _, num_calls = fork_attempt(source, f"{output}.clean.jsonl", os.devnull, -1, 0)
    print(json.dumps({"clean_calls": num_calls}), flush=True)
    done = 0
    for number in range(int(kills) * 3):
        last = done >= int(kills)
        kill_at = -1 if last else draw.randrange(1, max(8, num_calls // 6))
        ended_by, calls = fork_attempt(source, output, answers, kill_at, number)
        done += ended_by == signal.SIGKILL
        print(json.dumps({"kill_at": kill_at, "signal": ended_by, "calls": calls}), flush=True)
        if not ended_by and last:
            return
        if not ended_by:
            # It was through before the kills were: once more from the start, over its remains.
            print(json.dumps({"again": True}), flush=True)
            os.truncate(answers, 0)
            draw_again(Path(output))


def draw_again(output: Path) -> None:
    """Forget the finished run, so that the storm goes on."""
    import shutil

    shutil.rmtree(f"{output}.hpcserve")
    output.unlink()


if __name__ == "__main__":
    main()
