"""`hpcserve logs`: what a job says."""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

import click

POLL_S = 0.3
BLOCK = 1 << 16


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="go on until the job is over")
@click.option("--rank", type=int, help="one node's log; default: the job's own and all ranks'")
@click.option("-n", "--lines", type=int, default=100, show_default=True, help="last lines of each")
def command(job: str, follow: bool, rank: int | None, lines: int) -> None:
    """Print the logs of JOB (id, name, array task or run directory)."""
    from hpcserve.errors import LauncherError
    from hpcserve.launcher.replicas import servers_of
    from hpcserve.launcher.resolve import find
    from hpcserve.launcher.status import statuses

    ref = find(job)

    folders = [ref.job_dir, *ref.job_dir.tasks()]

    def paths() -> list[Path]:
        if rank is not None:
            return [one.rank_log(rank) for one in folders]
        own = [[one.job_log, *sorted(one.logs.glob("rank-*.log"))] for one in folders]
        return [path for paths in own for path in paths]

    if not follow and not any(path.exists() for path in paths()):
        raise LauncherError(f"job {ref.job_id} has written no such log yet ({paths()[0]})")
    readers: dict[Path, int] = {}
    next_ask = 0.0
    over = False
    while True:
        for path in paths():
            prefix = _prefix(path, several=rank is None)
            last = not follow or over
            readers[path] = _print_from(path, readers.get(path), lines, prefix, last=last)
        if not follow or over:
            return
        if time.monotonic() > next_ask:
            next_ask = time.monotonic() + 5.0
            over = all(one.state.over for one in statuses(servers_of(ref)))
        time.sleep(POLL_S)


def _prefix(path: Path, *, several: bool) -> str:
    """Which log a line is from: `rank-0 | `, and of an array's task `3 rank-0 | `."""
    folder = path.parent.parent
    words = [folder.name] if folder.parent.name == "tasks" else []
    words += [path.stem] if several else []
    return f"{' '.join(words)} | " if words else ""


def _print_from(path: Path, start: int | None, lines: int, prefix: str, *, last: bool) -> int:
    """Print what is new, whole lines only unless it is the `last` time; returns where to go on."""
    try:
        with path.open("rb") as stream:
            begin = stream.seek(_tail(stream, lines) if start is None else start)
            content = stream.read()
    except OSError:
        return start or 0
    end = len(content) if last else content.rfind(b"\n") + 1
    text = content[:end].decode("utf-8", errors="replace").splitlines()
    if start is None:
        text = text[-lines:]
    for line in text:
        click.echo(prefix + line)
    return begin + end


def _tail(stream: BinaryIO, lines: int) -> int:
    """Where to read from for so many last lines and some more: logs may be larger than memory."""
    position, found = stream.seek(0, 2), 0
    while position and found <= lines:
        size = min(BLOCK, position)
        position = stream.seek(position - size)
        found += stream.read(size).count(b"\n")
    return position
