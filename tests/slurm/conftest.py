"""A real Slurm of three nodes on this machine, and hpcserve's commands against it.

Each worker of the tests has one of its own; they know nothing of each other.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpcserve.launcher.files import read_json
from hpcserve.launcher.testing import mini_slurm

ENGINE = f"{sys.executable} -m hpcserve.launcher.testing.fake_server"
ROOT = Path(__file__).parents[2]
#: What tests wait for comes within seconds; a machine that does much else may take longer.
PATIENCE_S = 60.0


LACKING = ", ".join(mini_slurm.missing("curl"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.timeout(600))  # each test ends by itself long before
            if LACKING:
                item.add_marker(pytest.mark.skip(reason=f"lacks {LACKING}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LACKING:
        terminalreporter.write_line(
            f"skipped tests/slurm: a real Slurm cannot run here, it lacks {LACKING}"
        )


@dataclasses.dataclass
class Job:
    """A submitted job. `hpc` runs a command on it."""

    site: Site
    job_id: str
    run_dir: Path

    def hpc(self, verb: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.site.hpc(verb, self.job_id, *words, check=check)

    def status(self) -> dict[str, Any]:
        done = self.hpc("status", "--json", check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def wait(self, timeout: float = PATIENCE_S) -> str:
        return self.hpc("wait", "--timeout", str(timeout)).stdout

    def until(self, *states: str, timeout: float = PATIENCE_S) -> dict[str, Any]:
        next_look = time.monotonic()

        def reached() -> bool:
            nonlocal next_look
            # A command of its own each time would keep a core busy.
            state = (read_json(self.run_dir / "state.json") or {}).get("state")
            if state not in states and time.monotonic() < next_look:
                return False
            next_look = time.monotonic() + 1.0
            return self.status()["state"] in states

        eventually(reached, f"job {self.job_id} {' or '.join(states)}", timeout, self.story)
        return self.status()

    def eventually(self, holds: Callable[[], bool], what: str, timeout: float = PATIENCE_S) -> None:
        eventually(holds, what, timeout, self.story)

    def until_beat(self, rank: int, key: str) -> None:
        """Until a rank's heartbeat carries `key`: the first one is before the engine's start."""
        eventually(lambda: bool(self.read(f"nodes/rank-{rank}.json")[key]), f"{key} of rank {rank}")

    def story(self) -> str:
        logs = [path.read_text(errors="replace") for path in self.run_dir.glob("logs/*.log")]
        return f"{self.status()}\n" + "\n".join(logs)

    def read(self, name: str) -> dict[str, Any]:
        return json.loads((self.run_dir / name).read_text())

    def ask(self, path: str = "/models", *, key: bool = True, **body: object) -> tuple[int, str]:
        """curl the server with its key, as the README says; body: of a POST with a prompt."""
        endpoint = self.read("endpoint.json")
        header = f"Authorization: Bearer {(self.run_dir / 'api_key').read_text().strip()}"
        words = ["curl", "-s", "-w", "\n%{http_code}", *(["-H", header] if key else [])]
        if body:
            content = json.dumps({"model": "default", "prompt": "Count:", **body})
            words += ["-H", "Content-Type: application/json", "-d", content]
        done = subprocess.run(
            [*words, endpoint["url"] + path],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"curl: {done.stderr}\n{self.story()}"
        text, _, code = done.stdout.rpartition("\n")
        return int(code), text

    def processes(self, word: str, rank: int | None = None) -> list[psutil.Process]:
        """Processes of this job whose command line holds `word`, on one node or all."""
        found = []
        for process in self.site.slurm.leftovers():
            try:
                environ, line = process.environ(), " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            same = environ.get("SLURM_JOB_ID") == self.job_id.partition("_")[0]
            where = rank is None or environ.get("SLURM_NODEID") == str(rank)
            if same and where and word in line:
                found.append(process)
        return found


@dataclasses.dataclass
class Site:
    """The cluster, a home for its jobs, and a cluster file that says how things are there."""

    slurm: mini_slurm.MiniSlurm
    home: Path

    def env(self, **more: str) -> dict[str, str]:
        return {
            **self.slurm.env(),
            "PYTHONPATH": str(ROOT),
            "HPCSERVE_STATE_DIR": str(self.home / "state"),
            "HPCSERVE_CLUSTER": str(self.home / "cluster.yaml"),
            "HOME": str(self.home),
            "HPCSERVE_LAUNCHER": "auto",
            **more,
        }

    def hpc(
        self, *words: str, check: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "hpcserve", *words],
            env=self.env(**(env or {})),
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def submit(
        self, *words: str, fake: str = "", model: str = "/tmp", env: dict[str, str] | None = None
    ) -> Job:
        done = self.hpc(
            *("submit", "--json", *(["--model", model] if model else []), "--host", "127.0.0.1"),
            *("--drain", "5", "--time", "10", *words),
            env={"FAKE_ENGINE": fake, **(env or {})},
        )
        said = json.loads(done.stdout)
        return Job(self, said["job_id"], Path(said["run_dir"]))

    def job(self, job_id: str) -> Job:
        said = json.loads(self.hpc("status", job_id, "--json", check=False).stdout)
        return Job(self, job_id, Path(said["run_dir"]))

    def with_command(self, env: dict[str, str]) -> dict[str, str]:
        """`env` with `hpcserve` on its PATH, as after an installation."""
        command = self.home / "bin" / "hpcserve"
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/bash\nexec {sys.executable} -m hpcserve "$@"\n')
        command.chmod(0o755)
        return {**env, "PATH": f"{command.parent}:{env['PATH']}"}

    def squeue(self, job_id: str) -> str:
        return self.slurm.run("squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id).strip()


def eventually(
    holds: Callable[[], bool],
    what: str,
    timeout: float = PATIENCE_S,
    story: Callable[[], str] = str,
) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not after {timeout} s: {what}\n{story()}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mini_slurm.MiniSlurm]:
    # A short path: sockets lie in it. World-readable down to it, or munge refuses its socket.
    folder = tmp_path_factory.mktemp("mini")
    for parent in (folder, *folder.parents[:3]):
        if parent.stat().st_uid == os.geteuid() and str(parent).count("/") > 1:
            parent.chmod(parent.stat().st_mode | 0o755)
    with mini_slurm.MiniSlurm(folder, node_gpus=(8, 8, 4), kill_wait_s=20) as slurm:
        yield slurm
    assert not slurm.leftovers(), "processes outlived the cluster"


@pytest.fixture
def site(cluster: mini_slurm.MiniSlurm, tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "cluster.yaml").write_text(
        f"gpu-request: none\ndevice: cpu\nifname: lo\nengine-command: {ENGINE}\n"
    )
    yield Site(cluster, tmp_path)
    cluster.run("scancel", "--user", "root", check=False)
    eventually(lambda: not cluster.run("squeue", "-h", check=False).strip(), "an empty queue")


@pytest.fixture
def nothing_left(site: Site) -> Iterator[None]:
    """After the job no process of it is there."""
    yield
    site.slurm.run("scancel", "--user", "root", check=False)
    eventually(lambda: not site.slurm.leftovers(), "no process of a job")
