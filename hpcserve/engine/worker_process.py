"""A rank's process, as the one that starts it sees it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.supervisor import child_environment, exit_reason
from hpcserve.ipc.endpoints import Endpoint

WORKER_MODULE = "hpcserve.engine.worker_main"


class WorkerProcess:
    """It belongs to the session of its core, and ends with it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def spawn(cls, config: EngineConfig, rank: int, endpoint: Endpoint) -> WorkerProcess:
        process = subprocess.Popen(
            [sys.executable, "-m", WORKER_MODULE],
            stdin=subprocess.PIPE,
            stdout=2,
            env=child_environment(),
        )
        order = {
            "endpoint": str(endpoint),
            "options": config.to_options(),
            "dp_rank": config.dp_rank,
            "rank": rank,
        }
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code will tell
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it; a rank that lost its peers ends by itself."""
        return (self._process.poll() or 0) < 0

    @property
    def was_aborted(self) -> bool:
        """Whether it ended itself by SIGABRT, as NCCL's watchdog does where a peer is gone."""
        return self._process.poll() == -signal.SIGABRT

    @property
    def ended_in_order(self) -> bool:
        return self._process.poll() == 0

    def end_reason(self) -> str:
        return exit_reason(self._process.wait())

    def stop(self, timeout_s: float) -> None:
        """Wait for it to end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def kill(self) -> None:
        """End it, if it has not, and free what the parent holds of it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
