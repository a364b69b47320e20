"""What `hpcserve serve --node-rank R` is on all nodes but the first: it runs what node 0 asks for.

Node 0 asks for cores of replicas that live here, or for ranks of one that spans nodes. This
process ends, with all it started, when node 0 says so or is gone.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from hpcserve import envs
from hpcserve.config.engine import EngineConfig
from hpcserve.distributed.rendezvous import Member, Message
from hpcserve.distributed.topology import Topology
from hpcserve.engine.model_folder import with_model_folder
from hpcserve.engine.supervisor import CORE_MODULE, CoreProcess
from hpcserve.engine.worker_process import WorkerProcess
from hpcserve.errors import EngineStartError
from hpcserve.ipc.endpoints import Endpoint, listening_endpoint
from hpcserve.log import get_logger

logger = get_logger(__name__)

_POLL_S = 0.5
#: What ends in order is given this long.
_GRACE_S = 12.0
#: Options that may differ between nodes.
_OWN_OPTIONS = ("node_rank", "model", "tokenizer", "dist_init_addr")


def shared_options(config: EngineConfig) -> dict[str, Any]:
    """What must be the same on every node."""
    return {key: value for key, value in config.to_options().items() if key not in _OWN_OPTIONS}


def run_agent(config: EngineConfig, *, module: str = CORE_MODULE) -> int:
    """Serve node 0 until it ends; returns the exit code."""
    agent = _Agent(with_model_folder(config), module)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: agent.on_signal(number))
    try:
        return agent.run()
    finally:
        agent.end_all()


@dataclass(frozen=True)
class _Worker:
    """A rank that runs here for a replica.  launch: which start of it that is."""

    process: WorkerProcess
    dp_rank: int
    launch: int


class _Agent:
    def __init__(self, config: EngineConfig, module: str) -> None:
        self._config = config
        self._module = module
        self._workers: dict[int, _Worker] = {}
        self._cores: dict[int, CoreProcess] = {}
        self._stopping = threading.Event()
        self._has_sigterm = False
        parallel = config.parallel
        hello = {
            "kind": "hello",
            "node_rank": parallel.node_rank,
            "host": socket.gethostname(),
            "options": shared_options(config),
        }
        self._head = Member(
            str(parallel.dist_init_addr), hello, envs.HPCSERVE_START_TIMEOUT_S.get()
        )
        logger.info("node %d joined %s", parallel.node_rank, parallel.dist_init_addr)

    def on_signal(self, number: int) -> None:
        """Ctrl-C ends this node. SIGTERM, which SLURM may send to every process of a job, leaves
        it to node 0, which drains; a second one ends it."""
        if number == signal.SIGINT or self._has_sigterm:
            self._stopping.set()
        self._has_sigterm = True

    def run(self) -> int:
        """Exit code: 0 where it was told to end, 1 where node 0 is gone."""
        while not self._stopping.is_set():
            try:
                message = self._head.receive(_POLL_S)
            except EOFError as error:
                why = f" ({error})" if str(error) else ""
                logger.error("node 0 is gone%s; this node ends", why)
                return 1
            if message is not None and self._obey(message):
                self._await_all()
                return 0
            self._report_ended()
        return 0

    def _await_all(self) -> None:
        """Node 0 has told the cores and ranks to end as well; give them the time."""
        deadline = time.monotonic() + _GRACE_S
        for worker in self._workers.values():
            worker.process.stop(max(0.0, deadline - time.monotonic()))
        for core in self._cores.values():
            core.stop(max(0.0, deadline - time.monotonic()))

    def end_all(self) -> None:
        for worker in self._workers.values():
            worker.process.kill()
        for core in self._cores.values():
            core.kill()
        self._head.close()

    def _obey(self, message: Message) -> bool:
        """True for the order to end."""
        kind = message["kind"]
        if kind == "refused":
            raise EngineStartError(f"node 0 refuses this node: {message['reason']}")
        if kind == "workers":
            endpoint = Endpoint.parse(message["endpoint"])
            dp_rank = message["dp_rank"]
            config = replace(self._config, dp_rank=dp_rank)
            for rank in message["ranks"]:
                if (former := self._workers.pop(rank, None)) is not None:
                    former.process.kill()  # its core is gone, and it has not noticed yet
                process = WorkerProcess.spawn(config, rank, endpoint)
                self._workers[rank] = _Worker(process, dp_rank, message["launch"])
        elif kind == "core":
            self._start_core(message["dp_rank"], message["launch"])
        return bool(kind == "end")

    def _start_core(self, dp_rank: int, launch: int) -> None:
        """launch: which start of the replica this is, told with all news of it."""
        if (former := self._cores.pop(dp_rank, None)) is not None:
            former.end()  # it has failed, and may still be giving its GPUs back
        host = self._head.own_address()
        endpoint = listening_endpoint(host)
        workers = None
        if Topology(self._config.parallel).spans_nodes(dp_rank):
            workers = listening_endpoint(host)
        core = CoreProcess.spawn(
            self._config, endpoint, module=self._module, dp_rank=dp_rank, workers=workers
        )
        self._cores[dp_rank] = core
        core.on_exit(
            lambda code, reason: self._head.send(
                {
                    "kind": "core-ended",
                    "dp_rank": dp_rank,
                    "launch": launch,
                    "code": code,
                    "reason": reason,
                }
            )
        )
        self._head.send(
            {
                "kind": "core",
                "dp_rank": dp_rank,
                "launch": launch,
                "endpoint": str(endpoint),
                "workers": None if workers is None else str(workers),
            }
        )

    def _report_ended(self) -> None:
        for rank in [rank for rank, one in self._workers.items() if not one.process.is_alive]:
            worker = self._workers.pop(rank)
            if worker.process.ended_in_order:
                continue
            reason = worker.process.end_reason()
            logger.error("rank %d of this node ended: %s", rank, reason)
            self._head.send(
                {
                    "kind": "worker-ended",
                    "dp_rank": worker.dp_rank,
                    "launch": worker.launch,
                    "rank": rank,
                    "reason": reason,
                }
            )
