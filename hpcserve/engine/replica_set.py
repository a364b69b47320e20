"""The replicas of one engine: started, chosen among, and started again when one is gone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from hpcserve import envs
from hpcserve.config.engine import EngineConfig
from hpcserve.distributed.topology import Topology
from hpcserve.engine.control_calls import Replies
from hpcserve.engine.nodes import Nodes
from hpcserve.engine.replica import Replica, ReplicaStatus
from hpcserve.engine.router import PrefixRouter
from hpcserve.engine.supervisor import start_error
from hpcserve.errors import (
    EngineDeadError,
    EngineError,
    EngineStartError,
    InvalidParameterError,
)
from hpcserve.ipc.endpoints import Endpoint
from hpcserve.ipc.messages import (
    ControlReply,
    CoreMessage,
    EngineCoreOutputs,
    EngineDead,
    Int32Array,
    Ready,
    RequestFailed,
)
from hpcserve.log import get_logger

logger = get_logger(__name__)

#: A core's last words travel by another way than the news of its end: they may come later.
_LAST_WORDS_S = 0.2
#: Longest pause before a replica that keeps dying is started once more.
_RESTART_MOST_S = 60.0


@dataclass(frozen=True)
class ReplicaEvents:
    """Whom a ReplicaSet tells what.

    on_message: what a replica says about requests and calls.
    on_lost: a replica is gone and is being replaced; all that it worked on is lost.
    on_dead: no replica is left, for good.
    """

    on_message: Callable[[Replica, EngineCoreOutputs | RequestFailed | ControlReply], None]
    on_lost: Callable[[Replica, EngineDeadError], None]
    on_dead: Callable[[EngineDeadError], None]


class ReplicaSet:
    """Used on one event loop.

    module: what a core's process runs.
    """

    def __init__(self, config: EngineConfig, events: ReplicaEvents, *, module: str) -> None:
        self._config = config
        self._events = events
        self._module = module
        #: Why no replica is left, once that is so.
        self.dead: EngineDeadError | None = None
        self.died = asyncio.Event()
        self._closed = False
        self._members: list[Replica] = []
        self._num_members = 0
        self._router = PrefixRouter()
        self._nodes: Nodes | None = None
        self._restarts: set[asyncio.Task[None]] = set()
        self._num_restarts: Counter[int] = Counter()
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Start a core process for each replica, here or on the nodes that join."""
        parallel = self._config.parallel
        self._num_members = parallel.num_cores
        if parallel.nnodes > 1:
            self._nodes = Nodes(self._config, self._on_node_lost, self._on_core_ended)
            await self._nodes.wait()
        for index in range(parallel.num_cores):
            self._members.append(await self._spawn(index))

    def connect(self, endpoint: Endpoint) -> None:
        """Take in a core that somebody else started, and runs on without us."""
        self._num_members = 1
        self._members.append(Replica(0, endpoint, self._on_message, owns_core=False))

    async def wait_ready(self, timeout_s: float | None) -> None:
        """Until all answer.  timeout_s: default HPCSERVE_START_TIMEOUT_S.

        Raises EngineStartError, or ModelError where the model is to blame.
        """
        limit_s = envs.HPCSERVE_START_TIMEOUT_S.get() if timeout_s is None else timeout_s
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), limit_s)
        except asyncio.TimeoutError:
            raise EngineStartError(
                f"the engine was not ready after {limit_s:g} s; see its log above, or allow more "
                f"with {envs.HPCSERVE_START_TIMEOUT_S.name}"
            ) from None

    async def close(self) -> None:
        """Stop what was started here."""
        self._closed = True
        for task in self._restarts:
            task.cancel()
        await asyncio.gather(*(replica.close() for replica in self._members))
        if self._nodes is not None:
            self._nodes.close()
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen: whoever waited was told

    # ------------------------------------------------------------ members

    @property
    def ready(self) -> Ready:
        """What the first core said of itself."""
        return self._ready.result()

    @property
    def members(self) -> list[Replica]:
        """The replicas as they are now."""
        return list(self._members)

    def check_alive(self) -> None:
        """Raise EngineDeadError where no replica is left."""
        if self.dead is not None:
            raise EngineDeadError(str(self.dead))

    def choose(self, ids: Int32Array) -> Replica:
        """The replica that suits a prompt. Raises EngineError where none takes requests."""
        loads = {one.index: one.num_open for one in self._members if one.takes_requests}
        if not loads:
            raise EngineError("no replica takes requests at the moment; try again later")
        return self._members[self._router.choose(ids, loads)]

    def status(self, replies: Replies) -> list[ReplicaStatus]:
        """How each replica is.  replies: to a call for statistics."""
        topology = Topology(self._config.parallel)
        return [
            ReplicaStatus(
                one.index,
                one.state,
                one.num_open,
                self._num_restarts[one.index],
                topology.core_node(one.index),
                replies[one.index].stats if one.index in replies else None,
            )
            for one in self._members
        ]

    def drain(self, index: int) -> None:
        """Give a replica no more requests; it is drained when its open ones have ended.

        Raises InvalidParameterError for one that there is not, EngineError where no other would
        take requests.
        """
        replica = self._member(index)
        if not any(one.takes_requests for one in self._members if one is not replica):
            raise EngineError(f"replica {index} is the only one that takes requests")
        replica.draining = True

    def resume(self, index: int) -> None:
        """Give a drained replica requests again.  Raises InvalidParameterError."""
        self._member(index).draining = False

    def _member(self, index: int) -> Replica:
        if not 0 <= index < len(self._members):
            last = len(self._members) - 1
            raise InvalidParameterError("index", f"there is no replica {index}; valid: 0 to {last}")
        return self._members[index]

    # ------------------------------------------------------------ inside

    async def _spawn(self, index: int) -> Replica:
        """Start a replica's core, here or on the node where its first rank is."""
        topology = Topology(self._config.parallel)
        if self._nodes is not None and topology.core_node(index) > 0:
            return Replica(index, await self._nodes.start_core(index), self._on_message)
        workers = None
        if self._nodes is not None and topology.spans_nodes(index):
            workers = await self._nodes.start_workers(index)
        return Replica.spawn(
            index, self._config, self._on_message, module=self._module, workers=workers
        )

    def _on_message(self, replica: Replica, message: CoreMessage) -> None:
        if isinstance(message, EngineDead):
            self._on_dead(replica, message)
        elif isinstance(message, Ready):
            if not self._ready.done() and self._are_all_ready():
                self._ready.set_result(self._members[0].ready or message)
        else:
            self._events.on_message(replica, message)

    def _are_all_ready(self) -> bool:
        """One may be ready before the next has been started, on a node that is slow."""
        all_there = len(self._members) == self._num_members
        return all_there and all(one.ready is not None for one in self._members)

    def _on_node_lost(self, node_rank: int, host: str) -> None:
        topology = Topology(self._config.parallel)
        for replica in list(self._members):
            nodes = {topology.place(rank).node_rank for rank in topology.replica(replica.index)}
            if node_rank in nodes:
                replica.lost(f"node {node_rank} ({host}) is gone")

    def _on_core_ended(self, dp_rank: int, exit_code: int, reason: str) -> None:
        self._members[dp_rank].lost(reason, exit_code)

    def _on_dead(self, replica: Replica, message: EngineDead) -> None:
        """A replica that served is started again while others serve; else it is the end."""
        if self.dead is not None or self._closed:
            return
        others = any(one.ready and not one.dead for one in self._members)
        if self._ready.done() and others:
            self._replace(replica, message)
            return
        self.dead = EngineDeadError(f"the engine is gone ({message.role}): {message.reason}")
        self.died.set()
        if not self._ready.done():
            self._ready.set_exception(start_error(message))
        self._events.on_dead(self.dead)

    def _replace(self, replica: Replica, message: EngineDead) -> None:
        text = f"replica {replica.index} is gone ({message.role}): {message.reason}"
        logger.error("%s; the others go on, it is started again", text)
        self._router.forget(replica.index)
        self._events.on_lost(replica, EngineDeadError(text))
        task = asyncio.ensure_future(self._restart(replica))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, gone: Replica) -> None:
        """Put a new core in the place of one that is gone, after a pause that grows."""
        self._num_restarts[gone.index] += 1
        restarts = min(self._num_restarts[gone.index], 10)
        pause_s = min(_RESTART_MOST_S, 0.1 * 4 ** (restarts - 1))
        await gone.close()
        await asyncio.sleep(pause_s)
        while True:
            try:
                new = await self._spawn(gone.index)
            except (EngineError, OSError) as error:
                logger.error("replica %d did not start again: %s", gone.index, error)
                await asyncio.sleep(pause_s)
            else:
                new.draining = gone.draining
                self._members[gone.index] = new
                return
