"""`hpcserve bench startup`: seconds from the start of a server's process to its first answer."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcserve.bench.client_pool import child_environment
from hpcserve.bench.completion import PATH
from hpcserve.bench.probe import Server
from hpcserve.errors import EngineError, EngineStartError

_POLL_S = 0.02
_STOP_S = 30.0
_TAIL_LINES = 15
_LAST_WORDS_S = 2.0
#: Where programs of this field keep compiled code.
_CACHE_VARIABLES = (
    "HPCSERVE_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE",
    "CUDA_CACHE_PATH",
    "VLLM_CACHE_ROOT",
)


@dataclass
class StartupTimes:
    """Seconds after the process was started.  log: (seconds, line) of its output.

    server_phases_s: what the server itself reports of its phases, where it does.
    """

    port_open_s: float = 0.0
    first_answer_s: float = 0.0
    server_phases_s: dict[str, float] = field(default_factory=dict)
    log: list[tuple[float, str]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        return {
            "port_open_s": self.port_open_s,
            "first_answer_s": self.first_answer_s,
            "server_phases_s": self.server_phases_s,
        }


def hpcserve_command(arguments: list[str]) -> list[str]:
    """`hpcserve serve` of this very installation, on a port to be filled in."""
    return [sys.executable, "-m", "hpcserve", "serve", *arguments, "--port", "{port}"]


def measure_startup(
    command: list[str],
    *,
    cold: bool,
    timeout_s: float,
    num_prompt_tokens: int = 128,
    num_output_tokens: int = 1,
) -> StartupTimes:
    """Start `command` (`{port}` in it becomes a free port), wait for an answer, stop it.

    cold: give it empty folders for compiled code.
    Raises EngineStartError where it ends or says nothing in time.
    """
    port = _free_port()
    times = StartupTimes()
    body = {
        "prompt": list(range(100, 100 + num_prompt_tokens)),
        "max_tokens": num_output_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    with _caches(cold) as variables, _process(command, port, variables, times) as process:
        limit = process.started + timeout_s
        _wait_for_port(process, port, limit)
        times.port_open_s = time.monotonic() - process.started
        server = Server(f"http://127.0.0.1:{port}", _authorization())
        model = _wait_for_answer(process, server, body, limit)
        times.first_answer_s = time.monotonic() - process.started
        times.server_phases_s = _phases(server, model)
    return times


@dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    started: float
    times: StartupTimes
    reader: threading.Thread | None = None
    last_refusal: str = ""

    def check(self, limit: float) -> None:
        """Raise EngineStartError where it has ended or the time is over."""
        code = self.popen.poll()
        if code is not None and self.reader is not None:
            self.reader.join(_LAST_WORDS_S)  # its words come by a thread of their own
        tail = "\n".join(line for _, line in self.times.log[-_TAIL_LINES:])
        if code is not None:
            raise EngineStartError(
                f"the server ended with exit code {code} before it answered:\n{tail}"
            )
        if time.monotonic() > limit:
            said = f"; it last said: {self.last_refusal}" if self.last_refusal else ""
            raise EngineStartError(f"no answer in time (--timeout){said}\n{tail}")


@contextlib.contextmanager
def _process(
    command: list[str], port: int, variables: dict[str, str], times: StartupTimes
) -> Iterator[_Process]:
    command = [part.replace("{port}", str(port)) for part in command]
    started = time.monotonic()
    try:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**child_environment(), **variables},
        )
    except OSError as error:
        raise EngineStartError(f"cannot start {command[0]}: {error}") from error
    process = _Process(popen, started, times)
    reader = process.reader = threading.Thread(target=_read_log, args=(process,), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        _stop(popen)
        reader.join()
        assert popen.stdout is not None
        popen.stdout.close()


def _read_log(process: _Process) -> None:
    assert process.popen.stdout is not None
    for line in process.popen.stdout:
        text = line.decode(errors="replace").rstrip()
        process.times.log.append((time.monotonic() - process.started, text))


def _stop(popen: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then end it and all that it started."""
    popen.terminate()
    try:
        popen.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(popen.pid, signal.SIGKILL)


def _wait_for_port(process: _Process, port: int, limit: float) -> None:
    while True:
        process.check(limit)
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return
        except OSError:
            time.sleep(_POLL_S)


def _wait_for_answer(
    process: _Process, server: Server, body: dict[str, Any], limit: float
) -> dict[str, Any]:
    """The server's entry in /v1/models, once it has answered a completion."""
    while True:
        process.check(limit)
        try:
            model = server.model()
            asked = {"model": model["id"], **body}
            if server.call(PATH, asked, timeout_s=max(1.0, limit - time.monotonic())) is not None:
                return model
        except EngineError as error:  # it listens, but is not ready
            process.last_refusal = str(error)
        time.sleep(_POLL_S)


def _phases(server: Server, model: dict[str, Any]) -> dict[str, float]:
    """`timings_s` of the server's info, wherever in it that stands."""
    found = _search({"info": server.info(), "model": model}, "timings_s")
    if not isinstance(found, dict):
        return {}
    return {str(name): float(value) for name, value in found.items()}


def _search(tree: Any, key: str) -> Any:
    if not isinstance(tree, dict):
        return None
    if key in tree:
        return tree[key]
    return next((hit for one in tree.values() if (hit := _search(one, key)) is not None), None)


@contextlib.contextmanager
def _caches(cold: bool) -> Iterator[dict[str, str]]:
    """Environment variables that point to empty folders, or none."""
    if not cold:
        yield {}
        return
    root = Path(tempfile.mkdtemp(prefix="hpcserve-cold-"))
    try:
        variables = {}
        for name in _CACHE_VARIABLES:
            (root / name).mkdir()
            variables[name] = str(root / name)
        yield variables
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _authorization() -> dict[str, str]:
    from hpcserve.envs import HPCSERVE_API_KEY

    key = HPCSERVE_API_KEY.get()
    return {"Authorization": f"Bearer {key}"} if key else {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def print_startup(times: StartupTimes, *, show_log: bool) -> None:
    """The times, one a line, for people."""
    if show_log:
        for second, line in times.log:
            print(f"{second:8.2f} s  {line}")
    print(f"{times.port_open_s:8.2f} s  port open")
    print(f"{times.first_answer_s:8.2f} s  first answer")
    if not times.server_phases_s:
        print("            the server reports no phases of its own")
    for name, seconds in times.server_phases_s.items():
        print(f"{seconds:8.2f} s  in the server: {name}")
