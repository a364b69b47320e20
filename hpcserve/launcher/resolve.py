"""From what a user calls a job (id, name, array task, run directory) to its run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpcserve.errors import JobNotFoundError
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
        return _ref(reference, known[main], task)
    folder = Path(reference).expanduser()
    if ("/" in reference or reference in (".", "..")) and folder.is_dir():
        return _from_folder(folder.absolute())
    named = [_ref(job_id, job_dir) for job_id, job_dir in known.items()]
    named = [ref for ref in named if ref.name == reference]
    if not named:
        some = ", ".join(list(known)[-5:]) or "none"
        raise JobNotFoundError(
            f"no job {reference!r}: give an id, a name or a run directory (latest ids: {some}; "
            "see `hpcserve ps --all`)"
        )
    # The newest of that name: a server that is started anew usually keeps its name.
    return named[-1]


def tasks_of(ref: JobRef) -> list[JobRef]:
    """The tasks of an array that have a folder; none for an ordinary job."""
    return [
        JobRef(f"{ref.job_id}_{task.path.name}", task, ref.name) for task in ref.job_dir.tasks()
    ]


def _ref(job_id: str, job_dir: JobDir, task: str | None = None) -> JobRef:
    name = str(job_dir.read_job().get("name", ""))
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
    job_id = str(ids[-1])
    return JobRef(f"{job_id}_{task}" if task else job_id, job_dir, str(job.get("name", "")))
