"""`hpcserve route`: one address in front of the servers of a job."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hpcserve.launcher.front import Backend
    from hpcserve.launcher.resolve import JobRef


@click.command()
@click.argument("job")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes any free one")
@click.option(
    "--patience",
    type=float,
    default=30.0,
    show_default=True,
    help="seconds that a connection waits for a server where none is ready",
)
def command(job: str, host: str, port: int, patience: float) -> None:
    """Listen here, and pass connections on to the servers of JOB that are ready, until Ctrl-C.

    An array's servers share the load; a job that is requeued or chained is followed to where it
    comes up again. The key stays the job's.
    """
    from hpcserve.launcher.replicas import servers_of
    from hpcserve.launcher.resolve import find
    from hpcserve.log import setup_logging

    ref = find(job)
    refs = servers_of(ref)
    setup_logging(role=f"route {ref.job_id}")
    asyncio.run(_route(ref, refs, host, port, patience))


async def _route(
    ref: JobRef, refs: Sequence[JobRef], host: str, port: int, patience: float
) -> None:
    from hpcserve.errors import PortInUseError
    from hpcserve.launcher.front import Front
    from hpcserve.launcher.network import url_host

    front = Front(lambda: _ready(refs), patience)
    async with contextlib.AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(front.listening(host, port))
        except OSError as error:
            raise PortInUseError(
                f"cannot listen on {host} port {port}: {error}; name another --port"
            ) from error
        own = server.sockets[0].getsockname()[1]
        click.echo(f"http://{url_host(host)}:{own}/v1")
        click.echo(
            f"in front of {front.num_ready} of {len(refs)} servers of job {ref.job_id}", err=True
        )
        ended = asyncio.Event()
        # Set by us: a shell's background jobs are started with Ctrl-C ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await ended.wait()


def _ready(refs: Sequence[JobRef]) -> list[Backend]:
    """Where they answer now; a server that drains gets nothing new."""
    from hpcserve.launcher.base import JobState
    from hpcserve.launcher.files import read_json
    from hpcserve.launcher.front import Backend
    from hpcserve.launcher.status import statuses

    found = []
    for ref, one in zip(refs, statuses(list(refs)), strict=True):
        record = read_json(ref.job_dir.endpoint)
        if one.state is JobState.READY and record is not None:
            found.append(Backend(one.job_id, record["address"], record["port"]))
    return found
