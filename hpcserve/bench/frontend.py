"""`hpcserve bench frontend`: how many chunks a second one HTTP process can send.

A real HTTP process (text, JSON, HTTP and all) stands between a core that makes up tokens at a fixed
pace and the clients of this package.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hpcserve.bench.client_pool import Load, LoadResult, child_environment, run_load
from hpcserve.bench.completion import RequestStyle
from hpcserve.bench.metrics import figures_of
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.stand_in import make_stand_in
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.supervisor import CoreProcess
from hpcserve.errors import EngineStartError
from hpcserve.ipc.endpoints import create_endpoint

_CORE = "hpcserve.bench.flood_core"
_FRONTEND = "hpcserve.server.frontend"


@dataclass(frozen=True)
class FrontendPlan:
    """streams: open at once.  rate: tokens per second, over all streams.

    num_frontends: HTTP processes that share the port.  num_clients: client processes.
    """

    streams: int = 256
    tokens: int = 1000
    rate: float = 50_000.0
    num_frontends: int = 1
    num_clients: int = 1


def bench_frontend(plan: FrontendPlan) -> dict[str, Any]:
    """Run it once.

    chunks_per_s: what reached the clients.  tokens_per_chunk: 1 where each token had a chunk of its
    own; more where the process was behind and joined them.  cpu_us_per_chunk, _per_token: processor
    time of the HTTP processes, system time included; they hold also on a crowded machine.
    """
    requests = [
        BenchRequest(max_tokens=plan.tokens, prompt_token_ids=[97] * 8) for _ in range(plan.streams)
    ]
    load = Load(plan.streams, arrivals=False, num_processes=plan.num_clients)
    with _server(plan) as (url, processes):
        style = RequestStyle(model="default")
        warm_up = [BenchRequest(max_tokens=20, prompt_token_ids=[97] * 8)] * 8
        run_load(url, style, warm_up, Load(8, arrivals=False))
        before = _cpu_s(processes)
        result = run_load(url, style, requests, load)
        cpu_s = _cpu_s(processes) - before
    return {"benchmark": "frontend", **_figures(plan, requests, result, cpu_s)}


def _figures(
    plan: FrontendPlan, requests: list[BenchRequest], result: LoadResult, cpu_s: float
) -> dict[str, Any]:
    figures = figures_of(requests, result.records)
    chunks = sum(len(one.chunk_times) for one in result.records) // 8
    tokens = sum(one.output_tokens for one in result.records)
    duration_s = figures["duration_s"]
    return {
        "streams": plan.streams,
        "frontends": plan.num_frontends,
        "offered_tokens_per_s": plan.rate,
        "errors": figures["num_errors"],
        "duration_s": duration_s,
        "tokens_per_s": tokens / duration_s,
        "chunks_per_s": chunks / duration_s,
        "chunks_per_s_per_process": chunks / duration_s / plan.num_frontends,
        "tokens_per_chunk": tokens / chunks,
        "cpu_us_per_chunk": cpu_s / chunks * 1e6,
        "cpu_us_per_token": cpu_s / tokens * 1e6,
        # Processor time comes in hundredths of a second: a short run may have none.
        "chunks_per_cpu_s": chunks / cpu_s if cpu_s else None,
        "frontend_cpu_share": cpu_s / duration_s / plan.num_frontends,
        "client_cpu_share_max": max(result.cpu_shares),
    }


def _cpu_s(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


@contextmanager
def _server(plan: FrontendPlan) -> Iterator[tuple[str, list[psutil.Process]]]:
    """URL and HTTP processes."""
    with tempfile.TemporaryDirectory() as folder, create_endpoint() as endpoint:
        make_stand_in("qwen3-0.6b", Path(folder))
        step_ms = plan.streams / plan.rate * 1000
        options = {"model": folder, "target_itl": step_ms}
        config = EngineConfig.from_options(options)
        core = CoreProcess.spawn(config, endpoint, module=_CORE)
        frontends: list[subprocess.Popen[bytes]] = []
        try:
            port = 0
            for index in range(plan.num_frontends):
                process, port = _frontend(index, config, port)
                frontends.append(process)
            for process in frontends:
                _tell(process, str(endpoint))
                if process.stdout is None or not process.stdout.readline():
                    raise EngineStartError("the HTTP process did not start; see its words above")
            yield f"http://127.0.0.1:{port}", [psutil.Process(one.pid) for one in frontends]
        finally:
            for process in frontends:
                with process:  # closes its pipes, and waits
                    process.kill()
            core.kill()


def _frontend(index: int, config: EngineConfig, port: int) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(2048)
        process = subprocess.Popen(
            [sys.executable, "-m", _FRONTEND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env=child_environment(),
        )
        order = {
            "index": index,
            "listener": listener.fileno(),
            "engine": config.to_options(),
            "server": {},
        }
        _tell(process, json.dumps(order))
        return process, listener.getsockname()[1]


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")
    process.stdin.flush()
