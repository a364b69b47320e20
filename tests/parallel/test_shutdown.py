"""Told to stop, every rank ends by itself: nothing has to be killed, and every exit code is 0."""

from __future__ import annotations

import logging
import os
import signal

import pytest

from hpcserve import LLM, SamplingParams
from hpcserve.config.engine import EngineConfig
from hpcserve.engine import executor_mp
from hpcserve.engine.executor_mp import MpExecutor
from hpcserve.engine.worker_process import WorkerProcess

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
#: Layout, model, and how many executors of how many ranks there are.
LAYOUTS = [
    ({"tp": 2}, "qwen3", 1, 2),
    ({"pp": 2}, "qwen3", 1, 2),
    ({"dp": 2, "tp": 2}, "qwen3", 2, 2),
    ({"dp": 2, "ep": 2, "enable_dp_attention": True}, "qwen3_moe", 1, 2),
]


@pytest.fixture
def spawned(monkeypatch) -> list[WorkerProcess]:
    """Every rank that is started in this process."""
    found: list[WorkerProcess] = []
    spawn = WorkerProcess.spawn

    def remember(*args: object) -> WorkerProcess:
        found.append(spawn(*args))
        return found[-1]

    monkeypatch.setattr(WorkerProcess, "spawn", remember)
    return found


def test_every_rank_exits_with_0(kit, folder_of, spawned, tmp_path):
    options = {"model": str(folder_of("qwen3")), **kit.options, "tp": 2}
    executor = MpExecutor(EngineConfig.from_options(options), folder=tmp_path)
    executor.shutdown()
    assert [one.ended_in_order for one in spawned] == [True] * 2


@pytest.mark.parametrize(("layout", "model_type", "executors", "size"), LAYOUTS)
def test_nothing_is_killed(kit, folder_of, capfd, layout, model_type, executors, size):
    with LLM(str(folder_of(model_type)), **kit.options, **layout) as llm:
        llm.generate(kit.prompts[:3], GREEDY)
    log = capfd.readouterr().err
    assert log.count(f"told to stop, {size} ranks ended in") == executors
    assert "killed" not in log and "in order" not in log
    assert "Traceback" not in log


def test_a_rank_that_does_not_end_is_named(kit, folder_of, spawned, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(executor_mp, "_STOP_S", 0.5)
    options = {"model": str(folder_of("qwen3")), **kit.options, "tp": 2}
    executor = MpExecutor(EngineConfig.from_options(options), folder=tmp_path)
    logging.getLogger("hpcserve").addHandler(caplog.handler)
    os.kill(spawned[1].pid, signal.SIGSTOP)
    executor.shutdown()
    assert [one.is_alive for one in spawned] == [False, False]
    logging.getLogger("hpcserve").removeHandler(caplog.handler)
    assert "1 did not end in" in caplog.text
