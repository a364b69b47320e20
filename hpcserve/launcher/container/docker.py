"""Docker: its containers leave the job's cgroup, so a script on each node ends its own one."""

from __future__ import annotations

from pathlib import Path

import hpcserve
from hpcserve.launcher.container.base import ContainerRuntime, ContainerSpec
from hpcserve.launcher.template import quote

TASK_SCRIPT = Path(hpcserve.__file__).parent / "sbatch" / "container_task.sh"


class Docker(ContainerRuntime):
    name = "docker"
    kinds = ("registry", "tarball")

    def prefix(self, spec: ContainerSpec) -> list[list[str]]:
        return task_script("docker", spec)


def task_script(engine: str, spec: ContainerSpec) -> list[list[str]]:
    """`container_task.sh ENGINE IMAGE [--gpus] [--mount M]... --`, run on every node."""
    words = [["bash", '"$container_task"', engine, quote(spec.image)]]
    words += [["--gpus"]] if spec.gpus else []
    words += [["--mount", quote(mount)] for mount in spec.mounts]
    return [*words, ["--"]]


RUNTIME = Docker()
