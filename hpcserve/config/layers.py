"""Settings from several places, laid over each other: the first that says something wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.config.cluster import ClusterConfig
from hpcserve.config.declared import convert, declared_in
from hpcserve.config.engine import PARTS
from hpcserve.config.job import JobConfig
from hpcserve.config.load import Setting, resolve
from hpcserve.config.server import ServerConfig
from hpcserve.config.slurm import SBATCH_VARIABLES, SlurmConfig

#: Every option that a cluster file or a preset may hold.
EVERYTHING: tuple[type[Any], ...] = (
    SlurmConfig,
    ClusterConfig,
    JobConfig,
    ServerConfig,
    BatchConfig,
    RowDefaults,
    *PARTS.values(),
)


def overlay(*layers: Mapping[str, Setting]) -> dict[str, Setting]:
    """For every name, the setting of the first layer where it is no default."""
    merged = dict(layers[-1])
    for layer in reversed(layers[:-1]):
        merged.update(
            {name: s for name, s in layer.items() if not s.is_default or name not in merged}
        )
    return merged


def from_file(configs: Sequence[type[Any]], path: Path, origin: str) -> dict[str, Setting]:
    """The settings of one YAML file alone, from `origin` as users call it.

    Options that `configs` do not have are left out: a cluster file speaks of several commands.
    """
    found = resolve(EVERYTHING, given={}, file=path, environ={})
    wanted = {declared.name for declared in declared_in(configs)}
    return {
        name: one if one.is_default else Setting(one.value, origin)
        for name, one in found.items()
        if name in wanted
    }


def from_sbatch(configs: Sequence[type[Any]], environ: Mapping[str, str]) -> dict[str, Setting]:
    """What `SBATCH_*` variables say: sbatch lets them win over a script, so they count here."""
    found = {}
    for declared in declared_in(configs):
        variable = SBATCH_VARIABLES.get(declared.name, "")
        if environ.get(variable):
            origin = f"environment variable {variable}"
            found[declared.name] = Setting(convert(declared, environ[variable], origin), origin)
    return found
