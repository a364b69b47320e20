"""`hpcserve tunnel`: the ssh command that brings a server to a laptop."""

from __future__ import annotations

import getpass
import shlex
import socket

import click


@click.command()
@click.argument("job")
@click.option("--login", help="login node as the laptop knows it; default: the cluster file's")
@click.option("--port", type=int, default=8000, show_default=True, help="port on the laptop")
def command(job: str, login: str | None, port: int) -> None:
    """Print the command to run on your laptop, to reach JOB at http://localhost:PORT."""
    from hpcserve.cli.endpoint import ready_records
    from hpcserve.launcher.network import url_host
    from hpcserve.launcher.replicas import single
    from hpcserve.launcher.resolve import find

    ref = single(find(job))
    (record,) = ready_records([ref])
    login = login or ref.job_dir.described().get("login_host") or _own_name()
    forward = f"{port}:{url_host(record['address'])}:{record['port']}"
    words = ["ssh", "-N", "-L", forward, f"{getpass.getuser()}@{login}"]
    click.echo(" ".join(map(shlex.quote, words)))
    click.echo(f"then: export OPENAI_BASE_URL=http://localhost:{port}/v1", err=True)


def _own_name() -> str:
    """This machine's name as others may know it: /etc/hosts often says that it is localhost."""
    name = socket.getfqdn()
    return socket.gethostname() if name.startswith("localhost") else name
