"""A real Slurm on one machine: munge, slurmctld and several slurmd, under one temporary folder.

It has its own configuration, ports, key and spool, listens on 127.0.0.1 only, and ends exactly
the processes that it started. It needs root and Debian's `slurm-wlm` and `munge`.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from hpcserve.errors import SlurmError

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_SBIN = "/usr/sbin:/sbin"


def missing(*more: str) -> list[str]:
    """What this machine lacks to run one, and of `more` commands; empty means it can."""
    lacking = [name for name in (*DAEMONS, *more) if _which(name) is None]
    return lacking if os.geteuid() == 0 else ["root", *lacking]


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def free_ports(count: int) -> list[int]:
    """`count` TCP ports that are free right now; Slurm's daemons cannot take port 0.

    Below those that the kernel gives to connections: one of these would be taken by the time that
    the daemon is up. At random, so that two clusters on one machine keep apart.
    """
    first_of_kernel = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    for port in random.sample(range(10_000, first_of_kernel), 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            return found
    raise SlurmError(f"fewer than {count} TCP ports are free")


@dataclass
class MiniSlurm:
    """`with MiniSlurm(folder) as slurm:` then run Slurm's commands with `slurm.env()`.

    node_gpus: fake GPUs of each node, which also says how many nodes there are.
    kill_wait_s: between SIGTERM and SIGKILL, as on a cluster but shorter.
    """

    folder: Path
    node_gpus: tuple[int, ...] = (8, 8)
    kill_wait_s: int = 10
    extra_conf: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> MiniSlurm:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Slurm and munge refuse folders that others may write.
        self.folder.chmod(0o755)
        self._write_configuration()
        self._start_munge()
        self.start_controller()
        for name in self.nodes:
            self.start_node(name)
        self.wait_until_idle()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nodes(self) -> list[str]:
        return [f"n{index + 1}" for index in range(len(self.node_gpus))]

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    def env(self) -> dict[str, str]:
        """The environment in which Slurm's commands reach this cluster, free of any other's."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.conf), "PATH": f"{os.environ['PATH']}:{_SBIN}"}

    def run(self, *command: str, check: bool = True, timeout: float = 60.0) -> str:
        """Run one of Slurm's commands; returns what it printed on stdout."""
        done = subprocess.run(
            command, env=self.env(), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise SlurmError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    # ------------------------------------------------------------ daemons

    def _write_configuration(self) -> None:
        ports = free_ports(1 + len(self.node_gpus))
        user = pwd.getpwuid(os.geteuid()).pw_name
        (self.folder / "spool").mkdir(exist_ok=True)
        (self.folder / "log").mkdir(exist_ok=True)
        lines = [
            "ClusterName=mini",
            f"SlurmctldHost={socket.gethostname()}(127.0.0.1)",
            f"SlurmctldPort={ports[0]}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            f"AuthInfo=socket={self.folder}/munge.socket",
            "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",
            f"StateSaveLocation={self.folder}/spool/ctld",
            f"SlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/slurmd.%n.pid",
            f"SlurmctldLogFile={self.folder}/log/slurmctld.log",
            f"SlurmdLogFile={self.folder}/log/slurmd.%n.log",
            "SlurmdParameters=config_overrides",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            "GresTypes=gpu",
            "ReturnToService=2",
            "SlurmdTimeout=30",
            "InactiveLimit=0",
            "MinJobAge=300",
            f"KillWait={self.kill_wait_s}",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
        ]
        for name, gpus, port in zip(self.nodes, self.node_gpus, ports[1:], strict=True):
            gres = f" Gres=gpu:{gpus}" if gpus else ""
            lines.append(
                f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={socket.gethostname()} "
                f"Port={port} CPUs=16 RealMemory=16000{gres} State=UNKNOWN"
            )
        everywhere = f"Nodes={','.join(self.nodes)} State=UP"
        lines.append(f"PartitionName=main Default=YES MaxTime=INFINITE PriorityTier=1 {everywhere}")
        lines.append(f"PartitionName=urgent MaxTime=INFINITE PriorityTier=10 {everywhere}")
        lines += [line for line in self.extra_conf.splitlines() if line]
        self.conf.write_text("\n".join(lines) + "\n", encoding="utf-8")
        # Slurm wants a file for each GPU, and does not look into it.
        devices = self.folder / "gpus"
        devices.mkdir(exist_ok=True)
        for number in range(max(self.node_gpus)):
            (devices / f"gpu{number}").touch()
        gres_lines = [
            f"NodeName={name} Name=gpu File={devices}/gpu[0-{gpus - 1}]"
            for name, gpus in zip(self.nodes, self.node_gpus, strict=True)
            if gpus
        ]
        (self.folder / "gres.conf").write_text("\n".join(gres_lines) + "\n", encoding="utf-8")

    def _spawn(self, name: str, *command: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [_which(command[0]) or command[0], *command[1:]],
                env=self.env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        paths = {
            "key-file": key,
            "socket": self.folder / "munge.socket",
            "pid-file": self.folder / "munged.pid",
            "log-file": self.folder / "log" / "munged.log",
            "seed-file": self.folder / "munged.seed",
        }
        flags = [f"--{name}={path}" for name, path in paths.items()]
        self._spawn("munged", "munged", "--foreground", "--force", *flags)
        self._until("munge", lambda: paths["socket"].exists())

    def start_controller(self) -> None:
        self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        self._until("slurmctld", lambda: "UP" in self.run("scontrol", "ping", check=False))

    def stop_controller(self) -> None:
        self._stop("slurmctld")

    def start_node(self, name: str) -> None:
        self._spawn(name, "slurmd", "-D", "-N", name, "-f", str(self.conf))

    def stop_node(self, name: str) -> None:
        self._stop(name)

    def _stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait_until_idle(self) -> None:
        def idle() -> bool:
            states = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).split("\n")
            return {line.split()[0] for line in states if line.endswith("idle")} == set(self.nodes)

        self._until("the nodes", idle)

    def _until(self, what: str, ready: object, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            dead = [name for name, one in self.processes.items() if one.poll() is not None]
            if dead:
                log = (self.folder / "log" / f"{dead[0]}.out").read_text(errors="replace")
                raise SlurmError(f"{dead[0]} ended while waiting for {what}: {log[-2000:]}")
            if callable(ready) and ready():
                return
            time.sleep(0.1)
        raise SlurmError(f"{what} did not come up in {timeout:.0f} s; see {self.folder}/log")

    def release(self, job_id: str, timeout: float = 60.0) -> None:
        """Start a requeued job now; SLURM itself waits two minutes or so."""
        deadline = time.monotonic() + timeout
        words = ("squeue", "-h", "-o", "%T %r", "-j", job_id)
        while self.run(*words, check=False).strip() != "PENDING BeginTime":
            if time.monotonic() > deadline:
                raise SlurmError(f"job {job_id} was not requeued in {timeout:.0f} s")
            time.sleep(0.1)
        # Part of SLURM's wait is needed: nodes refuse a job whose former run they still clean up.
        time.sleep(2.5)
        self.run("scontrol", "update", f"JobId={job_id}", "StartTime=now")

    # ------------------------------------------------------------ teardown

    def close(self) -> None:
        """End jobs, daemons and whatever they left, by the ids that belong to this cluster."""
        if "slurmctld" in self.processes:
            self.run("scancel", "--user", pwd.getpwuid(os.geteuid()).pw_name, check=False)
            deadline = time.monotonic() + self.kill_wait_s + 5
            while time.monotonic() < deadline and self.run("squeue", "-h", check=False).strip():
                time.sleep(0.2)
        for name in [*self.nodes, "slurmctld", "munged"]:
            if name in self.processes:
                self._stop(name)
        for process in self.leftovers():
            process.kill()

    def leftovers(self) -> list[psutil.Process]:
        """Processes of this cluster's jobs that are still alive, known by their SLURM_CONF."""
        found = []
        for process in psutil.process_iter():
            try:
                environ = process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            if environ.get("SLURM_CONF") == str(self.conf) and process.pid != os.getpid():
                found.append(process)
        daemons = {process.pid for process in self.processes.values()}
        return [process for process in found if process.pid not in daemons]
