"""Settings from several places, laid over each other: the first that says something wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcserve.config.load import Setting, convert, declared_in, resolve
from hpcserve.config.slurm import SBATCH_VARIABLES


def overlay(*layers: Mapping[str, Setting]) -> dict[str, Setting]:
    """For every name, the setting of the first layer where it is no default."""
    merged = dict(layers[-1])
    for layer in reversed(layers[:-1]):
        merged.update({name: s for name, s in layer.items() if not s.is_default or name not in merged})
    return merged


def from_file(configs: Sequence[type[Any]], path: Path, what: str) -> dict[str, Setting]:
    """The settings of one YAML file alone; their origin reads "what PATH"."""
    found = resolve(configs, given={}, file=path, environ={})
    return {
        name: one if one.is_default else Setting(one.value, f"{what} {one.origin}")
        for name, one in found.items()
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
