"""What `srun` starts once on every node: finds the head, starts the engine, shows signs of life.

It ends when its engine ends, when it is told to, and when the supervisor is silent for long: then
nobody else would end an engine in a container that SLURM does not see.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcserve import envs
from hpcserve.config.cluster import ClusterConfig
from hpcserve.errors import ConfigError, EngineStartError, FabricError, OutputError
from hpcserve.launcher import engine_command, network, rendezvous
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.doctor.base import FAIL, PASS
from hpcserve.launcher.doctor.examine import node_findings
from hpcserve.launcher.environment import SIGNALS_REACH_ALL, gpus_on_node
from hpcserve.launcher.fabric import _select as fabrics
from hpcserve.launcher.fabric.base import Setting, interface_settings, not_yet_set, required_net
from hpcserve.launcher.files import changed_at, read_json, write_beat, write_json
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.liveness import BEAT_S
from hpcserve.launcher.signals import STOP, SignalInbox, end_group
from hpcserve.log import get_logger

log = get_logger(__name__)

RENDEZVOUS_TIMEOUT_S = 300.0
#: After the drain an engine gets this long to end by itself, then it is killed.
KILL_AFTER_S = 5.0


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
        self._beat = 0
        self._next_beat = 0.0
        self._phase = "starting"
        self._engine: subprocess.Popen[bytes] | None = None
        self._stop_at: float | None = None
        self._kill_at: float | None = None
        self._terminated = False
        self._supervisor_beat: tuple[int, float] = (0, time.monotonic())

    def run(self, arguments: Sequence[str]) -> int:
        self._show_life()
        self._check_gpus(arguments)
        self._preflight()
        ifname, address = network.own_address(self._facts, self._cluster.ifname)
        settings = self._settings(ifname)
        meet, listener = self._meet(address)
        try:
            if engine_command.runs_engine(self._environment.rank, self._options.world_size):
                self._start_engine(arguments, address, settings, meet, listener)
            else:
                log.info("a world of one runs on the head; this node stands by")
            self._phase = "running"
            return self._watch()
        finally:
            if listener is not None:
                os.close(listener)

    # ------------------------------------------------------------ set-up

    def _check_gpus(self, arguments: Sequence[str]) -> None:
        """Every node must have its share: `--gpus=5` on two nodes gives 4 and 1."""
        world, nodes = self._options.world_size, self._environment.num_nodes
        gpus = gpus_on_node() if engine_command.wants_gpus(arguments) else None
        if gpus is not None and world > 1 and gpus * nodes != world:
            raise ConfigError(
                f"node {self._environment.node_name} (rank {self._environment.rank}) has {gpus} "
                f"GPUs, but {world} ranks on {nodes} nodes need {world / nodes:g} on each; "
                "ask for --gpus-per-node, not for --gpus"
            )

    def _preflight(self) -> None:
        """What is broken on this node is said now, not after the weights have been read."""
        if self._options.preflight == "off":
            return
        findings = [one for one in node_findings() if one.level != PASS]
        for one in findings:
            log.warning("%s %s: %s; %s", one.level, one.check, one.found, one.fix)
        failed = [one for one in findings if one.level == FAIL]
        if failed:
            name = self._environment.node_name
            raise EngineStartError(
                f"node {name} is not fit: {failed[0].check}: {failed[0].found}; {failed[0].fix} "
                "(--preflight off starts all the same)"
            )

    def _settings(self, ifname: str) -> list[Setting]:
        """What the network forces, less what the user has set; said aloud, with reasons."""
        if self._environment.num_nodes < 2:
            return []
        cluster = self._cluster
        fabric = fabrics.choose(cluster.fabric, self._facts, require=cluster.require_fabric)
        forced = [*fabric.settings(ib_hca=cluster.ib_hca), *interface_settings(ifname)]
        if cluster.require_fabric:
            forced.append(required_net(fabric))
        if cluster.fabric == "auto" and fabric.name == "tcp":
            forced = interface_settings(ifname)
        log.info("fabric: %s", fabric.name)
        chosen = not_yet_set(forced, os.environ)
        for one in forced:
            mine = one in chosen
            value = one.value if mine else os.environ[one.name]
            log.info("%s=%s  # %s", one.name, value, one.reason if mine else "yours, kept")
        return chosen

    def _meet(self, address: str) -> tuple[rendezvous.Rendezvous, int | None]:
        """The meeting point, and on the head the descriptor of its bound socket."""
        if self._environment.rank == 0:
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
        self._show_life()
        return any(number in STOP for number in self._inbox.take())

    def _start_engine(
        self,
        arguments: Sequence[str],
        address: str,
        settings: Sequence[Setting],
        meet: rendezvous.Rendezvous,
        listener: int | None,
    ) -> None:
        env = {**os.environ, **{one.name: one.value for one in settings}}
        env["HPCSERVE_INCARNATION"] = self._environment.incarnation
        if self._environment.rank == 0:
            # By the head alone: its engine may have written this run's file by the time that the
            # other nodes come here.
            self._bound_file.unlink(missing_ok=True)
            env[envs.HPCSERVE_ENDPOINT_FILE.name] = str(self._bound_file)
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
        self._address = address
        log.info("starting %s", " ".join(argv))
        try:
            self._engine = subprocess.Popen(
                argv, env=env, pass_fds=descriptors, start_new_session=True
            )
        except OSError as error:
            raise EngineStartError(f"cannot start {argv[0]}: {error.strerror}") from error

    @property
    def _bound_file(self) -> Path:
        return self._job_dir.path / f".bound-{self._environment.incarnation}.json"

    # ------------------------------------------------------------ watching

    def _watch(self) -> int:
        while True:
            self._inbox.wait(0.2)
            for number in self._inbox.take():
                if number in STOP:
                    # A second SIGTERM would cut the engine's drain short.
                    self._terminated |= bool(os.environ.get(SIGNALS_REACH_ALL))
                    self._stop_engine(number.name, self._options.drain_s)
            code = self._ended()
            if code is not None:
                self._phase = "ended"
                self._show_life(now=True)
                return code
            self._show_life()
            self._publish_server()
            self._obey_supervisor()
            self._end_engine_in_time()

    def _ended(self) -> int | None:
        if self._engine is None:  # standing by: ends when told to, and with the head
            return 0 if self._stop_at is not None or self._head_ended() else None
        code = self._engine.poll()
        if code is None:
            return None
        end_group(self._engine.pid, signal.SIGKILL)  # what it left behind
        if self._stop_at is not None and code == -signal.SIGTERM:
            return 0  # it was told to end, twice, and SIGTERM was quicker than its own end
        return code if code >= 0 else 128 - code

    def _head_ended(self) -> bool:
        head = read_json(self._job_dir.node(0)) or {}
        same = head.get("incarnation") == self._environment.incarnation
        return same and head.get("phase") == "ended"

    def _stop_engine(self, why: str, drain_s: float) -> None:
        """Begin to end: the head's engine drains, the others serve it until it has ended."""
        if self._stop_at is not None:
            return
        log.info("%s: ending within %.0f s", why, drain_s + KILL_AFTER_S)
        self._phase = "draining"
        now = time.monotonic()
        self._stop_at = now if self._environment.rank == 0 else now + drain_s
        self._kill_at = now + drain_s + KILL_AFTER_S

    def _end_engine_in_time(self) -> None:
        if self._stop_at is None or self._kill_at is None or self._engine is None:
            return
        now = time.monotonic()
        if not self._terminated and (now >= self._stop_at or self._head_ended()):
            self._terminated = True
            # To the engine alone: it ends its own workers in order.
            self._engine.send_signal(signal.SIGTERM)
        if now > self._kill_at:
            log.warning("the engine did not end in time; killing it")
            end_group(self._engine.pid, signal.SIGKILL)

    def _obey_supervisor(self) -> None:
        control = read_json(self._job_dir.control)
        if control and control.get("incarnation") == self._environment.incarnation:
            self._stop_engine(str(control.get("why")), float(control.get("drain_s", 0)))
        seen = changed_at(self._job_dir.state)
        beat, since = self._supervisor_beat
        if seen != beat:
            self._supervisor_beat = (seen, time.monotonic())
        elif time.monotonic() - since > self._options.orphan_s:
            self._stop_engine(f"no word of the supervisor for {self._options.orphan_s:.0f} s", 0.0)

    def _publish_server(self) -> None:
        """The engine says where it is bound; others need the address that reaches it."""
        if self._environment.rank != 0 or self._job_dir.server.exists():
            return
        bound = read_json(self._bound_file)
        if bound is None:
            return
        everywhere = bound["host"] in ("0.0.0.0", "::", "")
        write_json(
            self._job_dir.server,
            {
                "address": self._address if everywhere else bound["host"],
                "port": bound["port"],
                "incarnation": self._environment.incarnation,
            },
        )

    def _show_life(self, *, now: bool = False) -> None:
        if not now and time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + BEAT_S
        self._beat += 1
        content = {
            "beat": self._beat,
            "incarnation": self._environment.incarnation,
            "rank": self._environment.rank,
            "host": self._environment.node_name,
            "pid": os.getpid(),
            "engine_pid": self._engine.pid if self._engine else None,
            "phase": self._phase,
            "addresses": {name: list(a) for name, a in self._facts.interfaces.items()},
            "rdma": [device.name for device in self._facts.rdma],
            "gpus": gpus_on_node(),
            "machine": network.machine_id(),
        }
        try:
            write_beat(self._job_dir.node(self._environment.rank), content)
        except OutputError as error:
            log.warning("%s; going on without", error)
