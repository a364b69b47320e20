"""Choose the container runtime: the named one, or the usual one for the image's kind."""

from __future__ import annotations

import shutil

from hpcserve import registry
from hpcserve.errors import ConfigError
from hpcserve.launcher.container.base import ContainerRuntime, image_kind

PACKAGE = "hpcserve.launcher.container"


def load(name: str) -> ContainerRuntime:
    runtime: ContainerRuntime = registry.load(PACKAGE, name.replace("-", "_")).RUNTIME
    return runtime


def choose(name: str, image: str | None) -> ContainerRuntime:
    """The runtime for `image`; `none` where there is no image.

    `auto` goes by the image (.sif: apptainer, .sqsh: pyxis) and then by what is installed here.
    Raises ConfigError for an image that the runtime cannot start.
    """
    if image is None or name == "none":
        if image is not None:
            raise ConfigError("--container-runtime none and --container contradict each other")
        return load("none")
    runtime = load(_guess(image) if name == "auto" else name)
    runtime.check(image)
    return runtime


def _guess(image: str) -> str:
    kind = image_kind(image)
    if kind == "sif":
        return "apptainer"
    if kind == "squashfs":
        return "pyxis"
    installed = [
        (("enroot",), "pyxis"),
        (("apptainer", "singularity"), "apptainer"),
        (("podman-hpc",), "podman-hpc"),
        (("docker",), "docker"),
    ]
    for commands, name in installed:
        if (name != "pyxis" or kind != "tarball") and any(map(shutil.which, commands)):
            return name
    raise ConfigError(
        f"cannot tell how to start {image}: neither enroot, apptainer, podman-hpc nor docker is "
        "installed here; name one with --container-runtime"
    )
