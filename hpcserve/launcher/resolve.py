"""From what a user calls a job (id, name, array task, run directory) to its run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpcserve.errors import JobNotFoundError
from hpcserve.launcher.files import read_json
from hpcserve.launcher.job_dir import JobDir, registered


@dataclass(frozen=True)
class JobRef:
    """One job, or one task of an array. job_id: as SLURM writes it (`12`, `12_3`, `local-77`)."""

    job_id: str
    job_dir: JobDir
    name: str


def find(reference: str) -> JobRef:
    """The job that `reference` names.

    Raises JobNotFoundError, with the near choices, where none or several are meant.
    """
    known = registered()
    if reference in known:
        return _ref(reference, known[reference])
    main, _, task = reference.rpartition("_")
    if main in known and task.isdigit():
        _refuse_no_task(main, task, known[main])
        return _ref(reference, known[main], task)
    folder = Path(reference).expanduser()
    if ("/" in reference or reference in (".", "..")) and folder.is_dir():
        return _from_folder(folder.absolute())
    named = [_ref(job_id, job_dir) for job_id, job_dir in known.items()]
    named = [ref for ref in named if ref.name == reference]
    if not named and folder.is_dir() and JobDir(folder).job.is_file():
        return _from_folder(folder.absolute())
    if not named:
        some = ", ".join(list(known)[-5:]) or "none"
        raise JobNotFoundError(
            f"no job {reference!r}: give an id, a name or a run directory (latest ids: {some}; "
            "see `hpcserve ps --all`)"
        )
    # The newest of that name: a server that is started anew usually keeps its name.
    ref = named[-1]
    return JobRef(_current(ref.job_dir, ref.job_id), ref.job_dir, ref.name)


def tasks_of(ref: JobRef) -> list[JobRef]:
    """The tasks of an array that have a folder; none for an ordinary job."""
    return [
        JobRef(f"{ref.job_id}_{task.path.name}", task, ref.name) for task in ref.job_dir.tasks()
    ]


def _refuse_no_task(job_id: str, task: str, job_dir: JobDir) -> None:
    """Raises JobNotFoundError for a task that the array has not; one of plain sbatch may have any."""
    replicas = job_dir.read_job().get("replicas")
    if replicas is not None and int(task) >= (replicas if replicas > 1 else 0):
        what = f"tasks 0 to {replicas - 1}" if replicas > 1 else "no tasks: it is no array"
        raise JobNotFoundError(f"no job '{job_id}_{task}': job {job_id} has {what}")


def _current(job_dir: JobDir, newest: str) -> str:
    """The job that runs in this directory, or ran last: the newest may wait for its end."""
    said = str((read_json(job_dir.state) or {}).get("job_id"))
    return said if said in job_dir.read_job().get("job_ids", []) else newest


def _ref(job_id: str, job_dir: JobDir, task: str | None = None) -> JobRef:
    name = str(job_dir.described().get("name", ""))
    return JobRef(job_id, job_dir.task(task), name)


def _from_folder(folder: Path) -> JobRef:
    job_dir = JobDir(folder)
    job = job_dir.read_job()
    task = None
    if not job and folder.parent.name == "tasks":
        task, job = folder.name, JobDir(folder.parent.parent).read_job()
    ids = job.get("job_ids") or []
    if not ids:
        raise JobNotFoundError(f"{folder} is no run directory: it has no job.json")
    job_id = _current(job_dir, str(ids[-1]))
    return JobRef(f"{job_id}_{task}" if task else job_id, job_dir, str(job.get("name", "")))
