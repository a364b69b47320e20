"""Every file that a job leaves, and nothing else knows their names.

job.json         what was asked for, and where each value came from
script.sbatch    the batch script
api_key          the clients' key, mode 0600
state.json       the supervisor's word: state, cause of death, heartbeat
endpoint.json    where the server answers
events.jsonl     every change of state, over all runs of the job
control.json     what the supervisor asks of the nodes: to drain
rendezvous.json  the head's address and port, published once the port is bound
deadline.json    when SLURM ends the job; servers refuse what would take longer
server.json      host and port of the HTTP server, published once they are bound
nodes/rank-R.json   who runs there, and its heartbeat
logs/job.log     the batch script's output;  logs/rank-R.log  each node's
tasks/K/         the same again for task K of a job array
"""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcserve import envs
from hpcserve.errors import OutputError
from hpcserve.launcher.files import read_json, write_atomically, write_json


@dataclass(frozen=True)
class JobDir:
    path: Path

    @classmethod
    def create(cls, path: Path) -> JobDir:
        """Make the folder and those in it, closed to other users since a key lies in it."""
        job_dir = cls(path.absolute())
        try:
            for folder in (job_dir.path, job_dir.nodes, job_dir.logs):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OutputError(f"cannot make the run directory {path}: {error.strerror}") from error
        return job_dir

    def task(self, array_task_id: str | None) -> JobDir:
        """The folder of one task of a job array; the job's own for None."""
        return self if array_task_id is None else JobDir(self.path / "tasks" / array_task_id)

    def tasks(self) -> list[JobDir]:
        """The folders of the array's tasks, in order; not those of an earlier, larger one."""
        replicas = self.read_job().get("replicas")
        end = float("inf") if replicas is None else replicas if replicas > 1 else 0
        found = [one for one in (self.path / "tasks").glob("*") if one.name.isdigit()]
        found = [one for one in found if int(one.name) < end]
        return [JobDir(one) for one in sorted(found, key=lambda one: int(one.name))]

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def script(self) -> Path:
        return self.path / "script.sbatch"

    @property
    def api_key(self) -> Path:
        return self.path / "api_key"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def endpoint(self) -> Path:
        return self.path / "endpoint.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def control(self) -> Path:
        return self.path / "control.json"

    @property
    def rendezvous(self) -> Path:
        return self.path / "rendezvous.json"

    @property
    def server(self) -> Path:
        return self.path / "server.json"

    @property
    def deadline(self) -> Path:
        return self.path / "deadline.json"

    @property
    def nodes(self) -> Path:
        return self.path / "nodes"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def job_log(self) -> Path:
        return self.logs / "job.log"

    def node(self, rank: int) -> Path:
        return self.nodes / f"rank-{rank}.json"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def read_job(self) -> dict[str, Any]:
        return read_json(self.job) or {}

    def described(self) -> dict[str, Any]:
        """job.json; of a task of an array, what its array was submitted with stands under it."""
        array = JobDir(self.path.parent.parent) if self.path.parent.name == "tasks" else self
        return {**array.read_job(), **self.read_job()}

    def update_job(self, **values: Any) -> None:
        write_json(self.job, {**self.read_job(), **values})

    def add_job_ids(self, *job_ids: str) -> None:
        """Note jobs that run here, oldest first; those that stand there keep their place."""
        ids = self.read_job().get("job_ids", [])
        self.update_job(job_ids=[*ids, *(one for one in job_ids if one not in ids)])

    def ensure_api_key(self) -> str:
        """The job's key: the one it has, else a new random one."""
        if not self.api_key.is_file():
            write_atomically(self.api_key, f"hpc-{secrets.token_urlsafe(32)}\n", mode=0o600)
        return self.api_key.read_text(encoding="utf-8").strip()

    def record(self, **event: Any) -> None:
        """Add one line to the events; O_APPEND keeps lines of several writers whole."""
        line = json.dumps({"at": round(time.time(), 3), **event}) + "\n"
        try:
            with self.events.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            raise OutputError(f"cannot write {self.events}: {error.strerror}") from error

    def read_events(self) -> list[dict[str, Any]]:
        """All events, oldest first; a last line cut short by a crash is left out."""
        if not self.events.is_file():
            return []
        found = []
        for line in self.events.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def index_folder() -> Path:
    """Links from job ids to run directories: how `ps` and names find them again."""
    return envs.HPCSERVE_STATE_DIR.get() / "jobs"


def default_run_dir(name: str) -> Path:
    """A new folder of its own for a job called `name`."""
    safe = "".join(char if char.isalnum() or char in "-._" else "-" for char in name).strip(".-")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return envs.HPCSERVE_STATE_DIR.get() / "runs" / f"{safe or 'job'}-{stamp}-{os.getpid()}"


def register(job_id: str, run_dir: Path) -> None:
    """Let `ps` and `status ID` find the run directory."""
    link = index_folder() / job_id
    temporary = link.with_name(f".{job_id}.{os.getpid()}")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary.symlink_to(run_dir.absolute())
        temporary.replace(link)
    except OSError as error:
        raise OutputError(f"cannot note the job in {link.parent}: {error.strerror}") from error


def registered() -> dict[str, JobDir]:
    """Job id -> run directory, oldest first, for those whose folder still exists."""
    if not index_folder().is_dir():
        return {}
    links = [one for one in index_folder().iterdir() if one.is_symlink() and one.is_dir()]
    links.sort(key=lambda one: one.lstat().st_mtime)
    return {one.name: JobDir(one.resolve()) for one in links}
