"""What holds for every test."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# A machine that is slow at the moment is no defect of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a login node of a real cluster, a test that runs `batch` must not submit a job."""
    monkeypatch.setenv("HPCSERVE_LAUNCHER", "local")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line that cannot be missed where tests did not run for want of a program."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)}
    for reason in sorted(reasons):
        if "Slurm" in reason:
            terminalreporter.write_line(f"tests/slurm: {reason}", yellow=True)
