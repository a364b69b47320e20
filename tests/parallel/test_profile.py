"""Every rank writes a trace of its own, and all of them record or none does."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from hpcserve.config.engine import EngineConfig
from hpcserve.engine import worker_process
from hpcserve.engine.client import EngineClient
from hpcserve.engine.executor_mp import MpExecutor
from hpcserve.errors import EngineDeadError, EngineError
from hpcserve.sampling_params import SamplingParams

SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
#: Layout, model, its ranks, and what an error names.
LAYOUTS = [
    ({"tp": 2}, "qwen3", ["dp0-pp0-tp0", "dp0-pp0-tp1"], "rank 0 (dp 0, pp 0, tp 0;"),
    ({"pp": 2}, "qwen3", ["dp0-pp0-tp0", "dp0-pp1-tp0"], "rank 0 (dp 0, pp 0, tp 0;"),
    ({"dp": 2}, "qwen3", ["dp0-pp0-tp0", "dp1-pp0-tp0"], "replica 0: "),
    (
        {"dp": 2, "ep": 2, "enable_dp_attention": True},
        "qwen3_moe",
        ["dp0-pp0-tp0", "dp1-pp0-tp0"],
        "rank 0 (dp 0, pp 0, tp 0;",
    ),
]


def operators(path: str) -> set[str]:
    """The names of what ran on the host."""
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return {event["name"] for event in events if event.get("cat") == "cpu_op"}


async def _generate(client: EngineClient) -> list[list[int]]:
    ends = await asyncio.gather(*(client.complete([5, 6, 7 + n], SHORT) for n in range(4)))
    return [end.outputs[0].token_ids for end in ends]


async def _profile(config: EngineConfig, folder: Path, ranks: list[str], name: str) -> None:
    """Profiles in and out of order, all of one engine."""
    taken = folder / "file"
    taken.write_text("")
    async with await EngineClient.open(config) as client:
        expected = await _generate(client)
        with pytest.raises(EngineError, match=r"stop_profile: .*no profile is being taken"):
            await client.stop_profile()
        with pytest.raises(EngineError, match=r"start_profile: .*cannot write profiles") as raised:
            await client.start_profile(str(taken / "inner"))
        assert name in str(raised.value)
        with pytest.raises(EngineError, match="no profile is being taken"):
            await client.stop_profile()
        await client.start_profile(str(folder / "new"))
        with pytest.raises(EngineError, match="being taken already"):
            await client.start_profile(str(taken))
        assert await _generate(client) == expected
        files = await client.stop_profile()
        assert sorted(Path(one) for one in files) == sorted((folder / "new").iterdir())
        found = [Path(one).name.split("-", 4)[-1].removesuffix(".trace.json.gz") for one in files]
        assert found == ranks
        for one in files:
            assert {"aten::mm", "aten::linear"} & operators(one), one
        with pytest.raises(EngineError, match="no profile is being taken"):
            await client.stop_profile()
        assert await _generate(client) == expected
        if len(client.replicas) == 2:
            await _refuse_by_one(client, folder)


async def _refuse_by_one(client: EngineClient, folder: Path) -> None:
    """Replica 1 records already: its core alone was asked to."""
    other = client._replicas.members[1]
    await client._calls.ask([other], "start_profile", str(folder / "own"))
    with pytest.raises(EngineError, match=r"^start_profile: replica 1: .*already"):
        await client.start_profile(str(folder / "both"))
    with pytest.raises(EngineError, match="replica 0: no profile") as raised:
        await client.stop_profile()
    written = list((folder / "own").iterdir())
    assert len(written) == 1 and str(written[0]) in str(raised.value)
    assert list((folder / "both").iterdir()) == []
    await client.start_profile(str(folder / "both"))
    assert len(await client.stop_profile()) == 2


@pytest.mark.parametrize(("layout", "model_type", "ranks", "name"), LAYOUTS)
def test_every_rank_writes_its_own(kit, folder_of, tmp_path, layout, model_type, ranks, name):
    options = {"model": str(folder_of(model_type)), **kit.options, **layout}
    asyncio.run(_profile(EngineConfig.from_options(options), tmp_path, ranks, name))


@pytest.fixture
def executor(kit, folder_of, tmp_path, monkeypatch):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(worker_process, "WORKER_MODULE", "profiling_worker")
    options = {"model": str(folder_of("qwen3")), **kit.options, "tp": 2}
    made = MpExecutor(EngineConfig.from_options(options), folder=tmp_path)
    yield made
    made.shutdown()


def test_one_rank_that_fails_is_named_and_none_goes_on(executor, tmp_path):
    with pytest.raises(EngineError, match=r"^rank 1 \(dp 0, pp 0, tp 1;.*no permission$"):
        executor.start_profile(str(tmp_path / "refused"))
    with pytest.raises(EngineError, match=r"^no profile"):
        executor.stop_profile("noon")
    # Where rank 0 still recorded, this would be refused.
    executor.start_profile(str(tmp_path / "traces"))
    (tmp_path / "traces" / "hpcserve-noon-dp0-pp0-tp1.trace.json.gz").mkdir()
    first = tmp_path / "traces" / "hpcserve-noon-dp0-pp0-tp0.trace.json.gz"
    with pytest.raises(EngineError, match=r"^rank 1 .*: cannot write .*; written: ") as raised:
        executor.stop_profile("noon")
    assert str(raised.value).endswith(f"; written: {first}") and first.is_file()
    executor.start_profile(str(tmp_path / "again"))
    executor.discard_profile()
    assert list((tmp_path / "again").iterdir()) == []
    executor.discard_profile()
    # One that dies as it writes is not waited for.
    executor.start_profile(str(tmp_path / "fatal"))
    with pytest.raises(EngineDeadError, match=r"^rank 1 .*SIGKILL"):
        executor.stop_profile("noon")


def test_a_rank_that_dies_while_it_records_ends_the_call(kit, folder_of, tmp_path):
    async def scenario() -> None:
        config = EngineConfig.from_options(
            {"model": str(folder_of("qwen3")), "tp": 2, **kit.options}
        )
        async with await EngineClient.open(config) as client:
            await client.start_profile(str(tmp_path))
            workers = [one for one in kit.children() if "worker_main" in " ".join(one.cmdline())]
            last: psutil.Process = max(workers, key=lambda one: one.pid)
            last.send_signal(signal.SIGKILL)
            with pytest.raises(EngineDeadError, match=r"rank 1 .*SIGKILL"):
                await client.stop_profile()

    asyncio.run(scenario())
