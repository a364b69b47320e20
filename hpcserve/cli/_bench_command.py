"""The kind of command that `hpcserve bench` has for workloads."""

from __future__ import annotations

from hpcserve.bench.cli_options import WorkloadFlags
from hpcserve.cli.options import SectionedCommand


class WorkloadCommand(WorkloadFlags, SectionedCommand):
    """Flags of workloads, in sections with others."""
