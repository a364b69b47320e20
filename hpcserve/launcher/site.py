"""A first cluster file, from what SLURM and the login node tell."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

from hpcserve.errors import SlurmError
from hpcserve.launcher import slurm_query
from hpcserve.launcher.plan import gpus

_GPU = re.compile(r"gpu(?::(?P<type>[A-Za-z][\w.-]*))?:(?P<count>\d+)")


@dataclass(frozen=True)
class Partition:
    name: str
    is_default: bool
    time_limit: str
    nodes: int
    gpus: int
    gpu_type: str


def describe_site() -> str:
    """The text of a cluster file: YAML, what is not sure as a comment."""
    lines = ["# Options that hold for every job on this cluster; see `hpcserve submit --help`."]
    try:
        found = partitions()
    except SlurmError as error:
        lines.append(f"# SLURM did not answer: {error}")
        found = []
    for one in found:
        gpus = f"{one.gpus} GPUs {one.gpu_type}".strip() if one.gpus else "no GPUs"
        lines.append(f"# partition {one.name}: {one.nodes} nodes, {gpus}, limit {one.time_limit}")
    best = max(found, key=lambda one: (one.gpus > 0, one.is_default, one.nodes), default=None)
    if best is not None:
        lines.append(f"partition: {best.name}")
    if best is not None and best.gpus:
        lines.append(f"node-gpus: {best.gpus}")
        lines.append(_gpu_line(best.gpu_type))
    else:
        lines += ["gpu-request: none", "device: cpu"]
    lines.append("fabric: auto")
    lines += [f"# found here: {name}" for name in _container_runtimes()]
    lines += [
        "# account: ...",
        "# container: /shared/images/hpcserve.sqsh",
        "# cache-dir: /scratch/...",
    ]
    return "\n".join(lines) + "\n"


def _gpu_line(slurms_name: str) -> str:
    """SLURM may call a GPU as its driver does: nvidia_h100_80gb_hbm3."""
    kind = gpus.recognized(slurms_name)
    said = (
        f"  # {slurms_name}" if slurms_name and (kind is None or kind.name != slurms_name) else ""
    )
    return f"{f'gpu: {kind.name}' if kind else '# gpu: h100'}{said}"


def partitions() -> list[Partition]:
    text = slurm_query.command("sinfo", "-h", "-o", "%P|%l|%D|%G")
    found = []
    for line in text.splitlines():
        name, limit, nodes, gres = line.split("|", 3)
        gpu = _GPU.search(gres)
        found.append(
            Partition(
                name=name.rstrip("*"),
                is_default=name.endswith("*"),
                time_limit=limit,
                nodes=int(nodes) if nodes.isdigit() else 0,
                gpus=int(gpu["count"]) if gpu else 0,
                gpu_type=(gpu["type"] or "") if gpu else "",
            )
        )
    return found


def _container_runtimes() -> list[str]:
    return [n for n in ("enroot", "apptainer", "podman-hpc", "docker") if shutil.which(n)]
