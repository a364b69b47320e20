"""No container: hpcserve runs from its virtual environment."""

from __future__ import annotations

from hpcserve.launcher.container.base import ContainerRuntime, ContainerSpec


class NoContainer(ContainerRuntime):
    name = "none"
    kinds = ()

    def prefix(self, spec: ContainerSpec) -> list[list[str]]:
        return []


RUNTIME = NoContainer()
