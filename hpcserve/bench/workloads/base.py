"""What a workload is: parameters, which are also flags of the command line, and requests."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from hpcserve import registry
from hpcserve.bench.record import RequestRecord
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.token_source import TokenSource
from hpcserve.config.option import option, options_of
from hpcserve.errors import ConfigError, UsageError

_PACKAGE = "hpcserve.bench.workloads"


@dataclass(frozen=True)
class Workload(ABC):
    """Parameters of a workload. `build` draws its requests: the same source, the same requests."""

    #: Whether answers must be kept to be judged afterwards.
    keeps_text = False
    #: Whether the requests' own arrival_s are meant to be followed.
    has_arrivals = False

    def __post_init__(self) -> None:
        for field, _ in options_of(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ConfigError(f"{field.name} is {value}; it must be at least 1")

    @abstractmethod
    def build(self, source: TokenSource) -> list[BenchRequest]:
        """All requests, in the order in which they are to be sent."""

    def judge(self, requests: list[BenchRequest], records: list[RequestRecord]) -> dict[str, Any]:
        """More figures of a run, for workloads whose answers can be right or wrong."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Every parameter, for the report."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class CountedWorkload(Workload):
    """A workload of independent requests, of which one may ask for any number."""

    num_requests: int = option(256, "--num-requests", "--num-prompts", help="how many requests")


def workload_names() -> list[str]:
    """Names as users write them: `multi-turn`."""
    return [name.replace("_", "-") for name in registry.names(_PACKAGE)]


def workload_class(name: str) -> type[Workload]:
    """Raises ConfigError that lists the choices."""
    entry: type[Workload] = registry.load(_PACKAGE, name.replace("-", "_")).EntryClass
    return entry


def make_workload(name: str, values: dict[str, Any]) -> Workload:
    """The workload with these parameters; raises UsageError for one it does not have."""
    kind = workload_class(name)
    flags = {field.name: declared.flags[0] for field, declared in options_of(kind)}
    for key in values:
        if key not in flags:
            raise UsageError(
                f"the workload {name} has no --{key.replace('_', '-')}; "
                f"it has {', '.join(sorted(flags.values()))}"
            )
    return kind(**values)
