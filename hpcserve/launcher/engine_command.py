"""The seam to the engine: what a node starts, given the job's layout.

A world of one GPU (or CPU process) runs on the head alone. For more, every node starts the engine
with the number of nodes, its own rank and the address to meet at, and the engine does the rest.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcserve.config.engine import PARTS
from hpcserve.config.layers import from_file, overlay
from hpcserve.config.load import resolve
from hpcserve.config.option import options_of
from hpcserve.config.parallel import ParallelConfig
from hpcserve.config.server import ServerConfig
from hpcserve.errors import ConfigError
from hpcserve.launcher.network import url_host
from hpcserve.launcher.rendezvous import Rendezvous

_SIZES = ("tp_size", "pp_size", "dp_size", "ep_size")
_SWITCHES = ("enable_expert_parallel", "enable_dp_attention")


def runs_engine(rank: int, world_size: int) -> bool:
    """Whether the node of this rank has a part in the engine."""
    return rank == 0 or world_size > 1


def wants_gpus(arguments: Sequence[str]) -> bool:
    """Whether the engine may run on GPUs: not where it is told to use the CPU."""
    words = " ".join(arguments)
    return "--device cpu" not in words and "--device=cpu" not in words


def parallel_of(arguments: Sequence[str]) -> ParallelConfig:
    """The layout that an engine's command line asks for, with its `--config FILE` and variables
    under it, as the engine itself reads them; other options are passed over."""
    flags = {
        flag: declared.name
        for declared, its_option in options_of(ParallelConfig)
        for flag in its_option.flags
        if declared.name in (*_SIZES, *_SWITCHES)
    }
    values: dict[str, Any] = {}
    words, file = iter(arguments), ""
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == "--config":
            file = value if equals else next(words, "")
        if flag not in flags:
            continue
        if flags[flag] in _SWITCHES:
            values[flags[flag]] = True
            continue
        text = value if equals else next(words, "")
        if not text.isdigit():
            raise ConfigError(f"{flag} is {text!r}; expected a whole number")
        values[flags[flag]] = int(text)
    settings = resolve([ParallelConfig], given=values)
    if file:
        settings = overlay(settings, from_file([ParallelConfig], Path(file), file))
    return ParallelConfig(**{name: settings[name].value for name in (*_SIZES, *_SWITCHES)})


def engine_argv(
    engine_command: str | None,
    arguments: Sequence[str],
    *,
    verb: str,
    num_nodes: int,
    rank: int,
    meet: Rendezvous | None,
) -> list[str]:
    """The command line of one node's engine."""
    start = (
        shlex.split(engine_command) if engine_command else [sys.executable, "-m", "hpcserve", verb]
    )
    words = [*start, *arguments]
    if num_nodes > 1 and meet is not None:
        address = f"{url_host(meet.address)}:{meet.port}"
        words += ["--nnodes", str(num_nodes), "--node-rank", str(rank)]
        words += ["--dist-init-addr", address]
    return words


def option_words(values: Mapping[str, Any], configs: Sequence[type[Any]] = ()) -> list[str]:
    """Field names and values as words of a command line, each under its first long flag."""
    words: list[str] = []
    for config in configs or (*PARTS.values(), ServerConfig):
        for declared, its_option in options_of(config):
            if declared.name not in values:
                continue
            value = values[declared.name]
            flag = next(one for one in its_option.flags if one.startswith("--"))
            if isinstance(value, bool):
                words.append(flag if value or not its_option.off_flags else its_option.off_flags[0])
            elif isinstance(value, tuple):
                words += [word for item in value for word in (flag, str(item))]
            elif value is not None:
                words += [flag, str(value)]
    return words
