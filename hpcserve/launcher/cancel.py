"""End a job for good: also the follow-up that waits for its end."""

from __future__ import annotations

from hpcserve.launcher import local_job, slurm_query
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.resolve import JobRef


def cancel(ref: JobRef) -> list[str]:
    """Returns the ids that were cancelled; those that are over already are left alone."""
    if local_job.is_local(ref.job_id):
        local_job.cancel(ref.job_id)
        return [ref.job_id]
    wanted = list(dict.fromkeys([*_later_ids(ref), ref.job_id]))
    known = slurm_query.jobs(wanted)
    # The follow-up first: else it starts in the moment that the job ends.
    for job_id in wanted:
        if _active(job_id, known):
            slurm_query.command("scancel", job_id)
    return [job_id for job_id in wanted if _active(job_id, known)]


def _later_ids(ref: JobRef) -> list[str]:
    """Jobs that go on in the same run directory, newest first."""
    if "_" in ref.job_id:
        return []
    ids = [str(one) for one in JobDir(ref.job_dir.path).read_job().get("job_ids", [])]
    return list(reversed(ids))


def _active(job_id: str, known: dict[str, slurm_query.SlurmJobInfo]) -> bool:
    return any(
        info.active for one, info in known.items() if one == job_id or one.startswith(f"{job_id}_")
    )
