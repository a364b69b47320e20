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
    """`container_task.sh ENGINE IMAGE [--gpus] [--env NAME]... [--mount M]... --` on every node.

    A daemon starts the container: of the job's variables it has what it is given by name.
    """
    words = [["bash", '"$container_task"', engine, quote(spec.image)]]
    words += [["--gpus"]] if spec.gpus else []
    words += [["--env", name] for name in spec.users_env]
    words += [["--mount", quote(mount)] for mount in spec.mounts]
    return [*words, ["--"]]


RUNTIME = Docker()
