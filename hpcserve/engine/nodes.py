"""The other nodes, as node 0's launcher sees them: who has joined, and what they run for us."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from hpcserve import envs
from hpcserve.config.engine import EngineConfig
from hpcserve.config.parallel import split_address
from hpcserve.distributed.rendezvous import Head, Message
from hpcserve.distributed.topology import Topology
from hpcserve.engine.node_agent import shared_options
from hpcserve.errors import ConfigError, EngineStartError
from hpcserve.ipc.endpoints import Endpoint, listening_endpoint
from hpcserve.log import get_logger

logger = get_logger(__name__)

_REJOIN_POLL_S = 0.5
#: The core's last words travel by another way than the news of its end: they may come later.
_LAST_WORDS_S = 0.2
#: A core finds out by itself who is to blame, and is given this long: a rank's end is passed on
#: later than that, for a core that is starting and would wait for the rank.
_BLAME_S = 4.0


class Nodes:
    """Used on one event loop.

    on_lost: called with a node's rank and name when it is gone.
    on_core_ended: called with (dp_rank, exit code, reason) when the core that was started last for
    a replica, or a rank of it, has ended on another node.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_lost: Callable[[int, str], None],
        on_core_ended: Callable[[int, int, str], None],
    ) -> None:
        # Starts of each replica: what a former one's processes still have to say is not news.
        self._launches: Counter[int] = Counter()
        self._config = config
        self._topology = Topology(config.parallel)
        self._on_lost = on_lost
        self._on_core_ended = on_core_ended
        self._hosts: dict[int, str] = {}
        self._joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._endpoints: dict[int, asyncio.Future[Endpoint]] = {}
        loop = asyncio.get_running_loop()

        def receive(node_rank: int, message: Message | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._handle, node_rank, message)

        self._head = Head(str(config.parallel.dist_init_addr), config.parallel.nnodes, receive)

    async def wait(self) -> None:
        """Until every node has joined.  Raises EngineStartError that names those who have not."""
        limit_s = envs.HPCSERVE_START_TIMEOUT_S.get()
        logger.info("waiting for %d nodes", self._config.parallel.nnodes - 1)
        try:
            await asyncio.wait_for(asyncio.shield(self._joined), limit_s)
        except asyncio.TimeoutError:
            everyone = range(1, self._config.parallel.nnodes)
            missing = [str(rank) for rank in everyone if rank not in self._hosts]
            raise EngineStartError(
                f"node {', '.join(missing)} of {self._config.parallel.nnodes} did not join at "
                f"{self._config.parallel.dist_init_addr} in {limit_s:g} s; see the log there"
            ) from None

    async def start_workers(self, dp_rank: int) -> Endpoint:
        """For a replica whose core runs here, let other nodes start their ranks of it.  Returns
        where its core must listen for them."""
        await self._present(dp_rank)
        host, _ = split_address(str(self._config.parallel.dist_init_addr))
        endpoint = listening_endpoint(host)
        self._launches[dp_rank] += 1
        self._order_workers(dp_rank, str(endpoint))
        return endpoint

    async def start_core(self, dp_rank: int) -> Endpoint:
        """Let a replica's node start its core, and others their ranks of it.  Returns where the
        core listens."""
        await self._present(dp_rank)
        future: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._endpoints[dp_rank] = future
        self._launches[dp_rank] += 1
        self._head.send(
            self._node_of(dp_rank),
            {"kind": "core", "dp_rank": dp_rank, "launch": self._launches[dp_rank]},
        )
        return await future

    async def _present(self, dp_rank: int) -> None:
        """Wait for the replica's nodes: one that is gone may be started again, and join again.

        Raises EngineStartError where the replica never ran: then somebody waits for the engine.
        """
        while missing := set(self._topology.nodes_of(dp_rank)) - {0, *self._hosts}:
            if not self._launches[dp_rank]:
                node_rank = min(missing)
                raise EngineStartError(f"node {node_rank} went away; see the log there")
            await asyncio.sleep(_REJOIN_POLL_S)

    def _order_workers(self, dp_rank: int, endpoint: str) -> None:
        """Let all nodes but the core's own start their ranks of a replica."""
        own = self._node_of(dp_rank)
        for node_rank in self._topology.nodes_of(dp_rank):
            if node_rank == own:
                continue
            here = self._topology.on_node(node_rank)
            ranks = [rank for rank in self._topology.companions(dp_rank) if rank in here]
            order = {"kind": "workers", "dp_rank": dp_rank, "ranks": ranks, "endpoint": endpoint}
            self._head.send(node_rank, order | {"launch": self._launches[dp_rank]})

    def close(self) -> None:
        self._head.close()

    def _handle(self, node_rank: int, message: Message | None) -> None:
        if message is None:
            self._lose(node_rank)
        elif message["kind"] == "hello":
            self._hello(node_rank, message)
        elif self._launches[message["dp_rank"]] != message["launch"]:
            logger.debug("old news of replica %d: %s", message["dp_rank"], message["kind"])
        elif message["kind"] == "core":
            self._on_core(message)
        elif message["kind"] == "core-ended":
            self._tell(_LAST_WORDS_S, message, message["code"], message["reason"])
        else:
            place = self._topology.place(message["rank"])
            logger.error("rank %d ended: %s", message["rank"], message["reason"])
            reason = f"{place} on {self._hosts.get(node_rank, '?')}: {message['reason']}"
            self._tell(_BLAME_S, message, 1, reason)

    def _on_core(self, message: Message) -> None:
        if message["workers"]:
            self._order_workers(message["dp_rank"], message["workers"])
        future = self._endpoints.pop(message["dp_rank"], None)
        if future is not None and not future.done():
            future.set_result(Endpoint.parse(message["endpoint"]))

    def _tell(self, delay_s: float, message: Message, exit_code: int, reason: str) -> None:
        """Pass the end of a replica's core on, unless it was started again meanwhile."""
        dp_rank, launch = message["dp_rank"], message["launch"]

        def tell() -> None:
            if self._launches[dp_rank] == launch:
                self._on_core_ended(dp_rank, exit_code, reason)

        asyncio.get_running_loop().call_later(delay_s, tell)

    def _lose(self, node_rank: int) -> None:
        host = self._hosts.pop(node_rank, "?")
        for dp_rank in [one for one in self._endpoints if self._node_of(one) == node_rank]:
            error = EngineStartError(f"node {node_rank} ({host}) went away")
            future = self._endpoints.pop(dp_rank)
            if not future.done():
                future.set_exception(error)
        self._on_lost(node_rank, host)

    def _node_of(self, dp_rank: int) -> int:
        return self._topology.core_node(dp_rank)

    def _hello(self, node_rank: int, message: Message) -> None:
        own, theirs = shared_options(self._config), message["options"]
        differing = [name for name in own if own[name] != theirs.get(name)]
        if differing:
            name = differing[0]
            why = (
                f"node {node_rank} ({message['host']}) was started with {name} "
                f"{theirs.get(name)!r}, node 0 with {own[name]!r}; use the same command"
            )
            if not self._joined.done():
                self._joined.set_exception(ConfigError(why))
            self._head.send(node_rank, {"kind": "refused", "reason": why})
            return
        self._hosts[node_rank] = message["host"]
        logger.info("node %d joined: %s", node_rank, message["host"])
        if len(self._hosts) == self._config.parallel.nnodes - 1 and not self._joined.done():
            self._joined.set_result(None)
