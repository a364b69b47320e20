"""`hpcserve exec`: run a command beside a job, on its nodes."""

from __future__ import annotations

import os
import shutil

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("job")
@click.option("--rank", type=int, help="only on this node; default: the head")
@click.option("--all-nodes", is_flag=True, help="once on every node")
@click.argument("words", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED, required=True)
def command(job: str, rank: int | None, all_nodes: bool, words: tuple[str, ...]) -> None:
    """Run COMMAND in the allocation of JOB, without asking for more: nvidia-smi, py-spy, a shell."""
    from hpcserve.errors import LauncherError, SlurmError
    from hpcserve.launcher.environment import without_slurm
    from hpcserve.launcher.local_job import is_local
    from hpcserve.launcher.replicas import single
    from hpcserve.launcher.resolve import find
    from hpcserve.launcher.slurm_query import srun_id
    from hpcserve.launcher.status import status

    ref = single(find(job))
    one = status(ref)
    if one.state.over or not one.nodes:
        raise LauncherError(f"job {ref.job_id} is {one.state.value}: it has no nodes now")
    if is_local(ref.job_id):
        try:
            os.execvp(words[0], words)
        except OSError as error:
            raise LauncherError(f"cannot run {words[0]}: {error.strerror}") from error
    if rank is not None and not 0 <= rank < len(one.nodes):
        raise LauncherError(f"rank {rank}: job {ref.job_id} has ranks 0 to {len(one.nodes) - 1}")
    nodes = one.nodes if all_nodes else [one.nodes[rank or 0]]
    if shutil.which("srun") is None:
        raise SlurmError("there is no command srun here; log in to a node that has it")
    srun = ["srun", f"--jobid={srun_id(one.job_id)}", "--overlap", f"--nodes={len(nodes)}"]
    srun += [f"--nodelist={','.join(nodes)}", "--ntasks-per-node=1", "--mpi=none"]
    os.execvpe("srun", [*srun, *words], without_slurm(dict(os.environ)))
