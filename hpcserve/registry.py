"""One new thing is one file: the names of a package's modules are the names users may choose.

`names("hpcserve.models")` lists them without importing any, so `--help` and validation stay
light; a missing library matters only to who chooses the module that needs it. Installed
distributions add more through the entry-point group of the same name as the package.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from importlib.util import find_spec
from types import ModuleType

from hpcserve.errors import ConfigError

# Modules that hold the contract of a package, not a member of it.
_CONTRACTS = frozenset({"base"})


@cache
def _plugins(package: str) -> EntryPoints:
    """Read once: every call of entry_points reads the metadata of all installed packages."""
    return entry_points(group=package)


def names(package: str) -> list[str]:
    """Sorted names of the members of `package`, such as `hpcserve.models`."""
    spec = find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    found = {module.name for module in pkgutil.iter_modules(locations or [])}
    found |= {point.name for point in _plugins(package)}
    return sorted(name for name in found - _CONTRACTS if not name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import the member `name` of `package`.

    Raises ConfigError that lists the choices when there is no such member.
    """
    known = names(package)
    if name not in known:
        raise ConfigError(f"{package} has no {name!r}; choose one of: {', '.join(known)}")
    for point in _plugins(package):
        if point.name == name:
            return import_module(point.value)
    return import_module(f"{package}.{name}")
