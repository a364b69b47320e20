"""`hpcserve doctor`: is this node, or this allocation, fit for work?"""

from __future__ import annotations

from pathlib import Path

import click

from hpcserve.cli._jobs import print_json


@click.command()
@click.option("--json", "as_json", is_flag=True, help="as JSON")
@click.option("--ifname", envvar="HPCSERVE_IFNAME", help="network interface between the nodes")
@click.option("--no-allreduce", is_flag=True, help="leave out the all-reduce between nodes")
@click.option("--part", type=click.Choice(["node", "allreduce"]), hidden=True)
@click.option("--folder", hidden=True)
def command(
    as_json: bool, ifname: str | None, no_allreduce: bool, part: str | None, folder: str | None
) -> None:
    """Check network, clocks, GPUs, NVLink, drivers, disk and memory; PASS, WARN or FAIL, with fixes.

    Inside an allocation (`salloc -N 2 hpcserve doctor`) every node is checked, and an all-reduce
    runs between them. Exit code 1 if anything fails.
    """
    from hpcserve.launcher.doctor import examine
    from hpcserve.launcher.doctor.base import FAIL, worst
    from hpcserve.launcher.environment import current, inside_allocation

    if part == "node":
        examine.node_report(Path(folder or "."), ifname)
        return
    if part == "allreduce":
        from hpcserve.launcher.doctor import collective

        collective.run(Path(folder or "."), current(), ifname)
        return
    if inside_allocation():
        findings = examine.allocation(current(), ifname, allreduce=not no_allreduce)
    else:
        findings = examine.here(ifname)
    if as_json:
        print_json({"worst": worst(findings), "findings": [one.as_json() for one in findings]})
    else:
        for one in findings:
            where = f"{one.host}: " if one.host else ""
            click.echo(f"{one.level}  {where}{one.check}: {one.found}")
            if one.fix:
                click.echo(f"      fix: {one.fix}")
    if worst(findings) == FAIL:
        click.get_current_context().exit(1)
