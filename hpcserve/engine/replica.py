"""One core as its frontend sees it: the process, the way to it, and what it said of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.supervisor import CoreProcess
from hpcserve.ipc.channel import FrontendChannel
from hpcserve.ipc.endpoints import Endpoint, OwnedEndpoint, create_endpoint
from hpcserve.ipc.messages import (
    ControlRequest,
    CoreMessage,
    EngineDead,
    FrontendMessage,
    Ready,
    SchedulerStats,
)

#: The core's last words travel by another way than the news of its end: they may come later.
_LAST_WORDS_S = 0.2
#: Whoever watches a core's process knows why it ended, and is given this long to say so.
_NEWS_OF_END_S = 1.5
#: Nobody waits for a reply to it, so its number may be any.
_SHUTDOWN = ControlRequest(0, "shutdown")


@dataclass(frozen=True)
class ReplicaStatus:
    """How a replica is.

    state: starting, ready, draining (takes no requests, some are open), drained (none is), or
    dead (it is started again).  num_open: requests it works on.  num_restarts: how often it was
    started again.  node: where its core runs.  load: its gauges, where it gave them.
    """

    index: int
    state: str
    num_open: int
    num_restarts: int
    node: int
    load: SchedulerStats | None


class Replica:
    """A core that runs, or will. One that is gone is replaced by a new object.

    on_message: called with each message, Ready and EngineDead among them.
    owns_core: whether the core ends with us.
    """

    def __init__(
        self,
        index: int,
        endpoint: Endpoint,
        on_message: Callable[[Replica, CoreMessage], None],
        owned: OwnedEndpoint | None = None,
        *,
        owns_core: bool = True,
    ) -> None:
        self._owns_core = owns_core
        self.index = index
        self.endpoint = endpoint
        self.ready: Ready | None = None
        self.dead: EngineDead | None = None
        #: True while it takes no new requests.
        self.draining = False
        #: Requests that it works on.
        self.num_open = 0
        self.closed = False
        self._owned = owned
        self._process: CoreProcess | None = None
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._channel = FrontendChannel(endpoint, self._receive, self._on_broken)

    @classmethod
    def spawn(
        cls,
        index: int,
        config: EngineConfig,
        on_message: Callable[[Replica, CoreMessage], None],
        *,
        module: str,
        workers: Endpoint | None = None,
    ) -> Replica:
        """Start a core process and connect to it; it is not ready yet.

        workers: where its ranks on other nodes look for it.
        """
        owned = create_endpoint()
        replica = cls(index, owned.endpoint, on_message, owned)
        process = CoreProcess.spawn(
            config, owned.endpoint, module=module, dp_rank=index, workers=workers
        )
        replica._attach(process)
        return replica

    def lost(self, reason: str, exit_code: int = 1) -> None:
        """Whoever runs its core says that it is gone."""
        self._receive(EngineDead("core", reason, exit_code if exit_code > 0 else 1))

    @property
    def takes_requests(self) -> bool:
        return self.ready is not None and self.dead is None and not self.draining

    @property
    def state(self) -> str:
        """As in ReplicaStatus."""
        if self.dead is not None:
            return "dead"
        if self.ready is None:
            return "starting"
        if not self.draining:
            return "ready"
        return "draining" if self.num_open else "drained"

    @property
    def pid(self) -> int | None:
        """Of the core, if it was started here."""
        return None if self._process is None else self._process.pid

    def send(self, message: FrontendMessage) -> None:
        """Queue a message; one that is gone or closed gets none."""
        if self.dead is None and not self.closed:
            self._channel.send(message)

    def declare_gone(self, reason: str) -> None:
        """Whoever started the core knows that it ended, and this process cannot."""
        self._receive(EngineDead("core", reason))

    async def close(self) -> None:
        """Free everything; a core that was started here ends, in order where it is ready."""
        if self.closed:
            return
        # A core on a node that fell silent may still run: it is told, if it can be reached.
        reachable = self.dead is None or self._process is None
        if self._owns_core and self.ready is not None and reachable:
            self._channel.send(_SHUTDOWN)
        self.closed = True
        self._channel.close()
        if self._process is not None:
            end = self._process.stop if self.ready is not None else self._process.kill
            await asyncio.to_thread(end if self.dead is None else self._process.end)
        if self._owned is not None:
            self._owned.remove()

    def _receive(self, message: CoreMessage) -> None:
        if isinstance(message, Ready):
            if self.ready is not None:
                return
            self.ready = message
        elif isinstance(message, EngineDead):
            if self.dead is not None or self.closed:
                return
            self.dead = message
        self._on_message(self, message)

    def _on_broken(self) -> None:
        reason = "the connection to it broke: its process ended"
        self._loop.call_later(_NEWS_OF_END_S, self.lost, reason)

    def _attach(self, process: CoreProcess) -> None:
        self._process = process

        def on_exit(exit_code: int, reason: str) -> None:
            dead = EngineDead("core", reason, exit_code if exit_code > 0 else 1)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(
                    self._loop.call_later, _LAST_WORDS_S, self._receive, dead
                )

        process.on_exit(on_exit)
