"""This node's part of the engine, as a process: started, asked to end, killed if it does not."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from hpcserve.errors import EngineStartError
from hpcserve.launcher.signals import end_group
from hpcserve.log import get_logger

log = get_logger(__name__)

#: After the drain an engine gets this long to end by itself, then it is killed.
KILL_AFTER_S = 5.0


class NodeEngine:
    """A node that stands by has one that is never started.

    is_head: its engine drains; the others serve it until it has ended.
    """

    def __init__(self, *, is_head: bool) -> None:
        self._is_head = is_head
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_at: float | None = None
        self._kill_at = float("inf")
        self._terminated = False

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], descriptors: Sequence[int]
    ) -> None:
        """descriptors: of sockets that the engine takes over.

        Raises EngineStartError where there is no such command.
        """
        log.info("starting %s", " ".join(argv))
        try:
            self._process = subprocess.Popen(
                argv, env=env, pass_fds=descriptors, start_new_session=True
            )
        except OSError as error:
            raise EngineStartError(f"cannot start {argv[0]}: {error.strerror}") from error

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def stopping(self) -> bool:
        return self._stop_at is not None

    def poll(self) -> int | None:
        """The exit code, as a shell counts it; None while it runs, or stands by."""
        if self._process is None:
            return None
        code = self._process.poll()
        if code is None:
            return None
        end_group(self._process.pid, signal.SIGKILL)  # what it left behind
        if self.stopping and code == -signal.SIGTERM:
            return 0  # it was told to end, twice, and SIGTERM was quicker than its own end
        return code if code >= 0 else 128 - code

    def stop(self, why: str, drain_s: float) -> None:
        """Begin to end; a second call changes nothing."""
        if self.stopping:
            return
        log.info("%s: ending within %.0f s", why, drain_s + KILL_AFTER_S)
        now = time.monotonic()
        self._stop_at = now if self._is_head else now + drain_s
        self._kill_at = now + drain_s + KILL_AFTER_S

    def has_sigterm(self) -> None:
        """Somebody sent it SIGTERM already: a second one would cut its drain short."""
        self._terminated = True

    def end_in_time(self, *, head_ended: bool) -> None:
        """What `stop` announced, when its time has come."""
        if self._stop_at is None or self._process is None:
            return
        now = time.monotonic()
        if not self._terminated and (now >= self._stop_at or head_ended):
            self._terminated = True
            # To the engine alone: it ends its own workers in order.
            self._process.send_signal(signal.SIGTERM)
        if now > self._kill_at:
            log.warning("the engine did not end in time; killing it")
            end_group(self._process.pid, signal.SIGKILL)
