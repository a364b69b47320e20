"""Several HTTP processes in front of one engine."""

import asyncio
import contextlib
import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families as read

from hpcserve.config.engine import EngineConfig
from hpcserve.config.parallel import ParallelConfig
from hpcserve.config.server import ServerConfig
from hpcserve.errors import EngineStartError, UsageError
from hpcserve.server import frontends as frontends_module

pytestmark = pytest.mark.timeout(400)

ENDLESS = {"ignore_eos": True, "max_new_tokens": 3000}


@pytest.fixture
def start(server_process):
    """Start servers of two HTTP processes."""
    return partial(server_process, workers=2)


def frontends(served):
    children = psutil.Process(served.process.pid).children()
    found = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one of these, too
            if "hpcserve.server.frontend" in child.cmdline():
                found.append(child)
    return found


def wait_for(is_so, patience_s=60):
    until = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def answered_by(served):
    """Texts of 12 requests, each on a connection of its own."""
    return [served.post("/generate", text=f"text {n}").json()["text"] for n in range(12)]


def test_all_serve_and_ctrl_c_drains(start):
    served = start(life=3)
    assert served.line.startswith("hpcserve serves ")
    assert len(frontends(served)) == 2
    assert answered_by(served) == [f"text {number}" for number in range(12)]
    loads = {json.dumps(served.get("/load").json()) for _ in range(8)}
    assert len(loads) == 1
    with served.stream("/generate", text="a" * 20, stream=True) as r:
        lines = r.iter_lines()
        next(lines)
        os.kill(served.process.pid, signal.SIGINT)
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    code, out, err = served.end()
    assert (code, out) == (0, ""), err
    assert "Traceback" not in err


def shared_folder(served):
    return Path(frontends(served)[0].environ()["PROMETHEUS_MULTIPROC_DIR"])


def counted(served, name):
    text = served.get("/metrics").text
    found = [s.value for f in read(text) for s in f.samples if s.name == name]
    return sum(found)


def test_whoever_is_asked_tells_of_all_and_of_those_that_are_gone(start):
    served = start()
    name = "hpcserve_requests_total"
    answered_by(served)
    # Connections are spread by the kernel: of eight, all to one process is one case in 128.
    assert [counted(served, name) for _ in range(8)] == [12.0] * 8
    assert counted(served, "hpcserve_time_to_first_token_seconds_count") == 12
    gone = frontends(served)
    for one in gone:
        one.kill()
    wait_for(lambda: len({one.pid for one in frontends(served)} - {one.pid for one in gone}) == 2)
    answered_by(served)
    assert [counted(served, name) for _ in range(4)] == [24.0] * 4
    folder = shared_folder(served)
    assert folder.is_dir()
    served.process.terminate()
    code, _, err = served.end()
    assert code == 0, err
    assert not folder.exists()


def test_sigterm_to_every_process_drains_as_well(start):
    served = start(life=3)
    with served.stream("/generate", text="a" * 20, stream=True) as r:
        lines = r.iter_lines()
        next(lines)
        server = psutil.Process(served.process.pid)
        for process in [server, *server.children(recursive=True)]:
            process.terminate()
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    code, _, err = served.end()
    assert code == 0, err


def test_one_that_dies_is_started_again(start):
    served = start()
    gone = frontends(served)[0]
    gone.kill()
    wait_for(lambda: len([one for one in frontends(served) if one.pid != gone.pid]) == 2)
    # Connections wait on the socket until the new process takes them.
    assert answered_by(served) == [f"text {number}" for number in range(12)]
    served.process.terminate()
    code, _, err = served.end()
    assert code == 0, err
    assert "ended by SIGKILL" in err and "it is started again" in err


def test_a_dead_engine_ends_all(start):
    served = start(life=2)
    children = frontends(served)
    assert served.post("/generate", text="a" * 50).status_code == 503
    code, _, err = served.end()
    assert code == 1
    assert "the engine is gone (core)" in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert not any(child.is_running() for child in children)


def test_a_second_ctrl_c_ends_at_once(start):
    served = start(life=3, drain_s=3600)
    with served.stream("/generate", text="a", stream=True, sampling_params=ENDLESS) as response:
        lines = response.iter_lines()  # held: once it is gone, so is the connection
        next(lines)
        os.kill(served.process.pid, signal.SIGINT)
        served.wait_said("1 requests are running")
        os.kill(served.process.pid, signal.SIGINT)
        code, _, err = served.end()
    assert code == 130, err
    assert "Traceback" not in err


def test_a_killed_server_leaves_nobody(start):
    served = start()
    children = frontends(served)
    folder = shared_folder(served)
    served.process.kill()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert len(gone) == 2 and not alive
    assert not folder.exists()


class MortalFrontend:
    """Ends `num_lives` times; then `signals` come."""

    index = 0

    def __init__(self, num_lives, signals):
        self.left, self.signals = num_lives, signals
        self.num_spawned = 0

    async def wait(self):
        if not self.left:
            self.signals.count = 1
        self.left -= 1
        return 1

    async def spawn(self):
        self.num_spawned += 1

    async def connect(self, endpoint):
        assert endpoint == "here"


@pytest.mark.parametrize("young_s", [60.0, 0.0])
def test_only_early_ends_in_a_row_end_the_server(monkeypatch, young_s):
    monkeypatch.setattr(frontends_module, "_YOUNG_S", young_s)
    monkeypatch.setattr(frontends_module, "_LAST_WORDS_S", 0.0)
    signals = SimpleNamespace(count=0)
    mortal = MortalFrontend(20, signals)

    async def main():
        replica = SimpleNamespace(endpoint="here")
        client = SimpleNamespace(died=asyncio.Event(), dead=None, replicas=[replica])
        await frontends_module._keep(mortal, client, signals)

    if young_s:
        with pytest.raises(EngineStartError, match="6 times in a row"):
            asyncio.run(main())
        assert mortal.num_spawned == 5
    else:
        asyncio.run(main())
        assert mortal.num_spawned == 20


def test_several_replicas_are_refused():
    engine = EngineConfig(parallel=ParallelConfig(dp_size=2))
    serve = frontends_module.serve_frontends(engine, ServerConfig(api_workers=2), [], "")
    with pytest.raises(UsageError, match="--api-workers 2 needs --dp-size 1"):
        asyncio.run(serve)
