"""Everything an engine needs to know, composed of the parts that declare it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcserve.config.backend import BackendConfig
from hpcserve.config.cache import CacheConfig
from hpcserve.config.declared import Declared, declared_in, parse
from hpcserve.config.model import ModelConfig
from hpcserve.config.option import options_of
from hpcserve.config.parallel import ParallelConfig
from hpcserve.config.scheduler import SchedulerConfig
from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """dp_rank: which replica this engine is.  worker_endpoint: where it listens for ranks on other
    nodes. Both are set by whoever starts it, and no options.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    dp_rank: int = 0
    worker_endpoint: str | None = None

    @classmethod
    def from_options(cls, values: Mapping[str, Any]) -> EngineConfig:
        """Build from flat names, of either dialect: `{"model": ..., "tensor_parallel_size": 2}`.

        Text is read as the option's type. Raises ConfigError for an unknown name (with the nearest
        one), for a value that does not fit, and for one option given under two names.
        """
        given: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for name, value in values.items():
            part, field_name, chosen = _resolve(name, value)
            if field_name in given[part] and given[part][field_name] != chosen:
                raise ConfigError(f"option {field_name} is given twice, with different values")
            given[part][field_name] = chosen
        return cls(**{part: PARTS[part](**chosen) for part, chosen in given.items()})

    def to_options(self) -> dict[str, Any]:
        """The flat form of `from_options`, with every field under its own name."""
        return {
            declared.name: getattr(getattr(self, part), declared.name)
            for part, config in PARTS.items()
            for declared, _ in options_of(config)
        }

    def replace(self, **values: Any) -> EngineConfig:
        """A copy with some options changed, by any of their names."""
        flat = self.to_options()
        for name, value in values.items():
            _, field_name, chosen = _resolve(name, value)
            flat[field_name] = chosen
        return EngineConfig.from_options(flat)


PARTS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "parallel": ParallelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "backend": BackendConfig,
}


def _resolve(name: str, value: Any) -> tuple[str, str, Any]:
    """(part, field name, value) of a keyword in either dialect, off-names included."""
    known: list[str] = []
    for part, config in PARTS.items():
        for declared in declared_in([config]):
            if name in declared.keywords:
                return part, declared.name, _fitting(declared, name, value)
            if name in declared.off_keywords:
                return part, declared.name, not _fitting(declared, name, value)
            known += declared.keywords
    raise ConfigError(unknown_option(name, known))


def _fitting(declared: Declared, name: str, value: Any) -> Any:
    try:
        return parse(declared, value)
    except ValueError as error:
        raise ConfigError(f"option {name}: {error}") from None


def unknown_option(name: str, known: list[str]) -> str:
    """The one-line message for an option that does not exist."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"unknown option {name!r}; did you mean {close[0]!r}?"
    return f"unknown option {name!r}; known: {', '.join(sorted(known))}"
