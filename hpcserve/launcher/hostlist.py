"""SLURM's compressed host lists, expanded without `scontrol` (containers have none)."""

from __future__ import annotations

from hpcserve.errors import ConfigError


def expand_hostlist(text: str) -> list[str]:
    """`n[1-2,07-09],gpu-a[1-2]b[0-3]` -> every name, in order, zeros kept.

    Raises ConfigError where brackets do not match or a range is no range.
    """
    return [name for group in _groups(text) for name in _expand(group)]


def _groups(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    groups, start, depth = [], 0, 0
    for index, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if depth not in (0, 1):
            raise ConfigError(f"host list {text!r}: brackets do not match")
        if char == "," and not depth:
            groups.append(text[start:index])
            start = index + 1
    if depth:
        raise ConfigError(f"host list {text!r}: brackets do not match")
    return [group.strip() for group in [*groups, text[start:]] if group.strip()]


def _expand(group: str) -> list[str]:
    head, bracket, rest = group.partition("[")
    if not bracket:
        return [group]
    inside, _, tail = rest.partition("]")
    return [head + number + end for number in _numbers(inside) for end in _expand(tail)]


def _numbers(inside: str) -> list[str]:
    found: list[str] = []
    for part in inside.split(","):
        low, dash, high = part.partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise ConfigError(f"host list: {part!r} is no number and no range")
        width = len(low)
        last = int(high) if dash else int(low)
        found += [f"{number:0{width}d}" for number in range(int(low), last + 1)]
    return found
