"""Flags that the verbs of `hpcserve bench` share."""

from __future__ import annotations

import math
import os
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hpcserve.bench.presets import PRESETS
from hpcserve.bench.roofline import H200_BYTES_PER_S, H200_FLOPS_PER_S, Hardware
from hpcserve.bench.workloads.base import workload_class, workload_names
from hpcserve.config.option import Option, options_of

if TYPE_CHECKING:
    from hpcserve.bench.selection import Selection

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(dir_okay=False, path_type=Path)


class NumberList(click.ParamType[Any]):
    """`1,8,64`, or `1,4,inf` where floats are meant."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind
        self.name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, list):
            return value
        try:
            numbers = [self._kind(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is no list of numbers like 1,8,64", param, ctx)
        if any(math.isnan(number) for number in numbers):
            self.fail(f"{value!r} holds what is no number", param, ctx)
        return numbers


def workload_options(function: F) -> F:
    """--preset, --trace and how requests are drawn; for a command of WorkloadFlags, which adds the rest."""
    return _all(
        click.option(
            "--preset", type=click.Choice(list(PRESETS)), help="one of the public workloads"
        ),
        click.option("--trace", type=FILE, help="replay this JSONL file of requests"),
        click.option("--save-trace", type=FILE, help="write the first run's requests there"),
        click.option(
            "--workload-seed", default=0, show_default=True, help="another seed, other requests"
        ),
    )(function)


def report_options(function: F) -> F:
    """Repeats and warm-up, and where the result goes."""
    return _all(
        click.option(
            "--repeats",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="measure so often; the report gives median and range",
        ),
        click.option(
            "--warmup",
            type=click.IntRange(0),
            help="requests before each measurement (default: one per stream, at most 256)",
        ),
        click.option("--output", "-o", type=FILE, help="write the whole result there (JSON)"),
    )(function)


def hardware_options(function: F) -> F:
    """The roofline's constants."""
    return _all(
        click.option(
            "--bandwidth",
            type=float,
            default=H200_BYTES_PER_S,
            show_default=True,
            help="memory bytes per second of one GPU, for MBU and floors",
        ),
        click.option(
            "--peak-flops",
            type=float,
            default=H200_FLOPS_PER_S,
            show_default=True,
            help="FLOPs per second of one GPU, for MFU and floors",
        ),
        click.option(
            "--num-gpus",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="GPUs that share the model",
        ),
    )(function)


def hardware_of(params: dict[str, Any]) -> Hardware:
    """What `hardware_options` were set to."""
    return Hardware(params["bandwidth"], params["peak_flops"], params["num_gpus"])


def selection_of(params: dict[str, Any]) -> Selection:
    """What `workload_options` were set to."""
    from hpcserve.bench.selection import select

    return select(
        workload=params["workload"],
        preset=params["preset"],
        trace=params["trace"],
        values=workload_values(params),
    )


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def note(text: str) -> None:
    """What is no result goes to stderr."""
    click.echo(text, err=True)


def _all(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    """One decorator of many; the help shows them in this order."""

    def decorate(function: F) -> F:
        for one in reversed(decorators):
            function = one(function)
        return function

    return decorate


class WorkloadFlags(click.Command):
    """Has --workload, and the parameters of every workload as flags.

    They are looked up when the command itself is asked for: other commands' help need not wait.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*_workload_flags(), *super().get_params(ctx)]


def workload_values(params: dict[str, Any]) -> dict[str, Any]:
    """The workload parameters that the command line set."""
    names = {flag.name for flag in _workload_flags()} - {"workload"}
    return {name: value for name, value in params.items() if name in names and value is not None}


@cache
def _workload_flags() -> list[click.Parameter]:
    """--workload, then the parameters of every workload, each name once."""
    names = workload_names()
    users: dict[str, list[str]] = {}
    declarations: dict[str, tuple[Option, Any]] = {}
    for workload in names:
        entry = workload_class(workload)
        types = typing.get_type_hints(entry)
        for field, declared in options_of(entry):
            declarations.setdefault(field.name, (declared, types[field.name]))
            users.setdefault(field.name, []).append(workload)
    choice = click.Option(
        ["--workload", "--dataset-name"],
        type=click.Choice(names),
        help="which requests to send (default: random)",
    )
    return [
        choice,
        *(_flag(name, *declared, users[name]) for name, declared in declarations.items()),
    ]


def _flag(name: str, declared: Option, kind: Any, users: list[str]) -> click.Option:
    chosen: dict[str, Any] = {"type": kind}
    if kind is bool:
        chosen = {"is_flag": True}
    elif declared.choices:
        chosen = {"type": click.Choice(list(declared.choices))}
    text = f"{declared.help} [{', '.join(users)}]"
    return click.Option([name, *declared.flags], default=None, help=text, **chosen)
