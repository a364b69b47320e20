"""End a job for good: also the follow-up that waits for its end."""

from __future__ import annotations

from hpcserve.launcher import local_job, slurm_query
from hpcserve.launcher.resolve import JobRef


def cancel(ref: JobRef) -> list[str]:
    """Returns the ids that were cancelled; those that are over already are left alone."""
    if local_job.is_local(ref.job_id):
        runs = local_job.controller(ref.job_id) is not None
        local_job.cancel(ref.job_id)
        return [ref.job_id] if runs else []
    wanted = list(dict.fromkeys([*_later_ids(ref), ref.job_id]))
    known = slurm_query.jobs(wanted, timeout_s=30)  # better late than not
    # The follow-up first: else it starts in the moment that the job ends.
    for job_id in wanted:
        if _active(job_id, known):
            slurm_query.command("scancel", job_id)
    return [job_id for job_id in wanted if _active(job_id, known)]


def _later_ids(ref: JobRef) -> list[str]:
    """Jobs that go on in the same run directory, or in that of a task, newest first."""
    folders = [ref.job_dir, *ref.job_dir.tasks()]
    ids = [str(one) for folder in folders for one in folder.read_job().get("job_ids", [])]
    return [one for one in reversed(ids) if not one.startswith(f"{ref.job_id}_")]


def _active(job_id: str, known: dict[str, slurm_query.SlurmJobInfo]) -> bool:
    return any(
        info.active for one, info in known.items() if one == job_id or one.startswith(f"{job_id}_")
    )
