"""`hpcserve bench self-test`: how many chunks a second one client process can take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from hpcserve.bench.client_pool import Load, child_environment, run_load
from hpcserve.bench.completion import RequestStyle
from hpcserve.bench.metrics import figures_of
from hpcserve.bench.request import BenchRequest
from hpcserve.errors import EngineError


def self_test(*, streams: int, tokens: int, num_servers: int, num_processes: int) -> dict[str, Any]:
    """Let null servers flood the client.

    chunks_per_s: what came through.  chunks_per_cpu_s: chunks per processor second of the client,
    which also tells something where the servers (or a crowded machine) were the slower side.
    chunks_per_read: 1 where each chunk woke the client up; more where chunks queued.
    """
    requests = [BenchRequest(max_tokens=tokens, prompt_token_ids=[1] * 8) for _ in range(streams)]
    with null_servers(num_servers) as base_url:
        load = Load(streams, arrivals=False, num_processes=num_processes)
        result = run_load(base_url, RequestStyle(model="null"), requests, load)
    figures = figures_of(requests, result.records)
    chunks = sum(len(one.chunk_times) for one in result.records) // 8
    cpu_s = sum(result.cpu_s)
    return {
        "benchmark": "self-test",
        "client_processes": len(result.cpu_s),
        "streams": streams,
        "chunks": chunks,
        "errors": figures["num_errors"],
        "chunks_per_s": chunks / figures["duration_s"],
        "chunks_per_s_per_process": chunks / figures["duration_s"] / len(result.cpu_s),
        "chunks_per_cpu_s": chunks / cpu_s,
        "chunks_per_read": chunks / max(1, result.num_reads),
        "client_cpu_share_max": max(result.cpu_shares),
    }


@contextmanager
def null_servers(count: int, *arguments: str) -> Iterator[str]:
    """Null servers as processes that share one port; gives the base URL.

    Raises EngineError where one does not start.
    """
    with ExitStack() as stack:
        port = 0
        for _ in range(count):
            port = stack.enter_context(_null_server(port, *arguments))
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _null_server(port: int, *arguments: str) -> Iterator[int]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "hpcserve.bench.null_server"),
            *(f"--port={port}", "--until-eof", *arguments),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(),
    )
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        try:
            line = process.stdout.readline()
            if not line:
                raise EngineError("the null server did not start; see its words above")
            yield int(line)
        finally:
            process.kill()
            process.wait()
