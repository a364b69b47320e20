"""Starts the core as a process of its own, notices its end, and never leaves it behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcserve.config.engine import EngineConfig
from hpcserve.errors import EngineStartError, HpcserveError, ModelError
from hpcserve.ipc.endpoints import Endpoint
from hpcserve.ipc.messages import EngineDead
from hpcserve.log import get_logger

logger = get_logger(__name__)

CORE_MODULE = "hpcserve.engine.core_main"
_USAGE_EXIT_CODE = 2
#: Longer than a core gives its own ranks.
_KILL_AFTER_S = 15.0
_LAST_WORDS_S = 2.0
_WATCH_PERIOD_S = 1.0
_HALTED_S = 8.0


class CoreProcess:
    """A running core.

    Its standard input is a lifeline: the order comes first, and its end says that this process is
    gone. It has a session of its own, so Ctrl-C reaches only the frontend, which then drains.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def spawn(
        cls,
        config: EngineConfig,
        endpoint: Endpoint,
        *,
        module: str = CORE_MODULE,
        dp_rank: int = 0,
        workers: Endpoint | None = None,
    ) -> CoreProcess:
        """Run `python -m module` with the order on its standard input.

        dp_rank: which replica it is.  workers: where its ranks on other nodes look for it.
        Listening sockets of endpoints are the child's from then on.
        """
        places = [endpoint] if workers is None else [endpoint, workers]
        handed = [place.descriptor for place in places if place.descriptor >= 0]
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=2,  # a core prints nothing, and what a library prints is no output of ours
                start_new_session=True,
                env=child_environment(),
                pass_fds=handed,
            )
        finally:
            for descriptor in handed:
                os.close(descriptor)
        order: dict[str, Any] = {"endpoint": endpoint.handed_down(), "dp_rank": dp_rank}
        order["options"] = config.to_options()
        if workers is not None:
            order["workers"] = workers.handed_down()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code will tell
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def on_exit(self, callback: Callable[[int, str], None]) -> None:
        """Call `callback(exit_code, reason)` from another thread when the process ends.

        One that is halted (SIGSTOP) for _HALTED_S is ended: it would never answer anybody.
        """

        def watch() -> None:
            halted_s = 0.0
            while True:
                try:
                    code = self._process.wait(_WATCH_PERIOD_S)
                except subprocess.TimeoutExpired:
                    halted_s = halted_s + _WATCH_PERIOD_S if self._is_halted() else 0.0
                    if halted_s < _HALTED_S:
                        continue
                    callback(self.kill(), f"its process was halted for {halted_s:.0f} s")
                else:
                    callback(code, exit_reason(code))
                return

        threading.Thread(target=watch, name="core-watch", daemon=True).start()

    def _is_halted(self) -> bool:
        import psutil

        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        except psutil.NoSuchProcess:
            return False

    def stop(self, timeout_s: float = _KILL_AFTER_S) -> int:
        """Wait for it to end, then make it. Returns the exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            logger.warning("the engine process %d does not stop; it is killed", self.pid)
        finally:
            self._cut_lifeline()
        return self.kill()

    def end(self) -> int:
        """It failed: leave it the time to say why, then kill it. Returns the exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)
        return self.kill()

    def kill(self) -> int:
        """End it at once, with all processes of its session. Returns the exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._cut_lifeline()
        return self._process.wait()

    def _cut_lifeline(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


def start_error(dead: EngineDead) -> HpcserveError:
    """The error for a core that never became ready, with the exit code that fits."""
    error: HpcserveError
    if dead.exit_code == _USAGE_EXIT_CODE:
        error = ModelError(dead.reason)
    else:
        error = EngineStartError(f"the engine did not start: {dead.reason}")
    error.exit_code = dead.exit_code
    return error


def exit_reason(exit_code: int) -> str:
    """One line on why a process that said nothing ended."""
    if exit_code >= 0:
        return f"its process ended with exit code {exit_code}; see its log above"
    name = signal.Signals(-exit_code).name
    hint = " (often: out of memory)" if name == "SIGKILL" else "; see its log above"
    return f"its process was ended by {name}{hint}"


def child_environment() -> dict[str, str]:
    """The child finds the same hpcserve, and nothing in the current folder hides a library."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    root = Path(__file__).resolve().parents[2]
    if root.name not in {"site-packages", "dist-packages"}:
        given = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(root), *([given] if given else [])])
    return environment
