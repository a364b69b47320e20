"""What `srun` starts once on every node: finds the head, starts the engine, shows signs of life.

It ends when its engine ends, when it is told to, and when the supervisor is silent for long: then
nobody else would end an engine in a container that SLURM does not see.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hpcserve import envs
from hpcserve.config.cluster import ClusterConfig
from hpcserve.errors import FabricError
from hpcserve.launcher import engine_command, network, node_checks, rendezvous
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.environment import SIGNALS_REACH_ALL
from hpcserve.launcher.fabric._on_node import settings_of_node
from hpcserve.launcher.files import changed_at, read_json
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.liveness import HELD_UP_S
from hpcserve.launcher.node_beat import NodeBeat
from hpcserve.launcher.node_engine import NodeEngine
from hpcserve.launcher.server_address import ServerAddress
from hpcserve.launcher.signals import STOP, SignalInbox
from hpcserve.log import get_logger

log = get_logger(__name__)

RENDEZVOUS_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class NodeOptions:
    """verb: the subcommand that is the engine, serve or batch.

    orphan_s: seconds without a word of the supervisor after which the node ends.
    """

    verb: str = "serve"
    world_size: int = 1
    engine_command: str | None = None
    drain_s: float = 20.0
    orphan_s: float = 120.0
    dist_port: int = 0
    preflight: str = "off"


class Node:
    """`run()` returns the engine's exit code."""

    def __init__(
        self,
        job_dir: JobDir,
        environment: JobEnvironment,
        cluster: ClusterConfig,
        options: NodeOptions,
        inbox: SignalInbox,
    ) -> None:
        self._job_dir = job_dir
        self._environment = environment
        self._cluster = cluster
        self._options = options
        self._inbox = inbox
        self._facts = network.facts()
        self._beat = NodeBeat(job_dir, environment, self._facts)
        self._engine = NodeEngine(is_head=self._is_head)
        self._supervisor_beat: tuple[int, float] = (0, time.monotonic())
        self._looked = time.monotonic()
        self._run_number: int | None = None

    @property
    def _is_head(self) -> bool:
        return self._environment.rank == 0

    @property
    def _has_engine(self) -> bool:
        return engine_command.runs_engine(self._environment.rank, self._options.world_size)

    def run(self, arguments: Sequence[str]) -> int:
        self._beat.show()
        if engine_command.wants_gpus(arguments):
            node_checks.check_gpus(self._environment, self._options.world_size)
        if self._options.preflight != "off":
            node_checks.check_health(self._environment)
        ifname, address = network.own_address(self._facts, self._cluster.ifname)
        env = dict(os.environ)
        if self._environment.num_nodes > 1:
            found = settings_of_node(self._cluster, self._facts, ifname)
            env.update((one.name, one.value) for one in found)
        server = ServerAddress(self._job_dir, self._environment.incarnation, address)
        meet, listener = self._meet(address)
        try:
            if self._told_to_stop():
                log.info("told to end before the engine was started")
                self._beat.phase = "ended"
                self._beat.show(now=True)
                return 0
            if self._has_engine:
                self._start_engine(arguments, env, server, meet, listener)
            else:
                log.info("a world of one runs on the head; this node stands by")
            self._beat.phase = "running"
            return self._watch(server)
        finally:
            if listener is not None:
                os.close(listener)

    # ------------------------------------------------------------ set-up

    def _meet(self, address: str) -> tuple[rendezvous.Rendezvous, int | None]:
        """The meeting point, and on the head the descriptor of its bound socket."""
        if self._is_head:
            listener = rendezvous.bind(address, self._options.dist_port)
            meet = rendezvous.publish(
                self._job_dir, self._environment, listener, network.machine_id()
            )
            return meet, listener.detach()
        meet = rendezvous.wait_for(
            self._job_dir, self._environment, RENDEZVOUS_TIMEOUT_S, self._told_to_stop
        )
        if network.is_loopback(meet.address) and meet.machine != network.machine_id():
            raise FabricError(
                f"the head {self._environment.hosts[0]} gave the address {meet.address}, which "
                f"{self._environment.node_name} cannot reach; name another interface with --ifname"
            )
        return meet, None

    def _told_to_stop(self) -> bool:
        self._beat.show()
        return any(number in STOP for number in self._inbox.take())

    def _start_engine(
        self,
        arguments: Sequence[str],
        env: dict[str, str],
        server: ServerAddress,
        meet: rendezvous.Rendezvous,
        listener: int | None,
    ) -> None:
        env["HPCSERVE_INCARNATION"] = self._environment.incarnation
        if self._is_head:
            server.clear()
            env[envs.HPCSERVE_ENDPOINT_FILE.name] = str(server.bound_file)
            env[envs.HPCSERVE_DEADLINE_FILE.name] = str(self._job_dir.deadline)
        if self._job_dir.api_key.is_file():
            key = self._job_dir.api_key.read_text(encoding="utf-8").strip()
            env[envs.HPCSERVE_API_KEY.name] = key
        descriptors = [listener] if listener is not None and self._options.world_size > 1 else []
        if descriptors:
            env[envs.HPCSERVE_DIST_LISTEN_FD.name] = str(descriptors[0])
        env[envs.HPCSERVE_DIST_SECRET.name] = meet.secret
        argv = engine_command.engine_argv(
            self._options.engine_command,
            arguments,
            verb=self._options.verb,
            num_nodes=self._environment.num_nodes if self._options.world_size > 1 else 1,
            rank=self._environment.rank,
            meet=meet,
        )
        self._engine.start(argv, env, descriptors)
        self._beat.engine_pid = self._engine.pid

    # ------------------------------------------------------------ watching

    def _watch(self, server: ServerAddress) -> int:
        while True:
            self._inbox.wait(0.2)
            self._take_signals()
            code = self._engine.poll() if self._has_engine else self._end_of_standby()
            if code is not None:
                self._beat.phase = "ended"
                self._beat.show(now=True)
                return code
            self._beat.phase = "draining" if self._engine.stopping else "running"
            self._beat.show()
            if self._is_head:
                server.publish()
            self._obey_supervisor()
            self._engine.end_in_time(head_ended=self._head_ended())

    def _take_signals(self) -> None:
        for number in self._inbox.take():
            if number in STOP:
                if os.environ.get(SIGNALS_REACH_ALL):
                    self._engine.has_sigterm()
                self._engine.stop(number.name, self._options.drain_s)

    def _end_of_standby(self) -> int | None:
        """A node without an engine ends when told to, and with the head."""
        return 0 if self._engine.stopping or self._head_ended() else None

    def _head_ended(self) -> bool:
        head = read_json(self._job_dir.node(0)) or {}
        same = head.get("incarnation") == self._environment.incarnation
        return same and head.get("phase") == "ended"

    def _obey_supervisor(self) -> None:
        control = read_json(self._job_dir.control)
        if control and control.get("incarnation") == self._environment.incarnation:
            self._engine.stop(str(control.get("why")), float(control.get("drain_s", 0)))
        seen = changed_at(self._job_dir.state)
        beat, since = self._supervisor_beat
        now = time.monotonic()
        held_up = now - self._looked > max(HELD_UP_S, self._options.orphan_s / 2)
        self._looked = now
        if seen != beat:
            self._supervisor_beat = (seen, now)
            self._make_room_for_a_later_run()
        elif held_up:
            self._supervisor_beat = (beat, now)
        elif now - since > self._options.orphan_s:
            self._engine.stop(f"no word of the supervisor for {self._options.orphan_s:.0f} s", 0.0)

    def _make_room_for_a_later_run(self) -> None:
        """The word may be that of the job's next run, while nobody could end this one."""
        said = read_json(self._job_dir.state) or {}
        number = int(said.get("restart_count", 0))
        if said.get("incarnation") == self._environment.incarnation:
            self._run_number = number
        elif self._run_number is not None and number > self._run_number:
            self._engine.stop("a later run of the job has begun", 0.0)
