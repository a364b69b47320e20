"""SLURM's commands as stand-ins at the front of PATH."""

from __future__ import annotations

import os

import pytest

from hpcserve.launcher.testing.fake_slurm import FakeSlurm


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "fake-slurm")
    # Nothing else on PATH but what scripts need: a real SLURM of this machine stays out.
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/local/bin:/usr/bin:/bin")
    monkeypatch.setenv("HPCSERVE_STATE_DIR", str(tmp_path / "state"))
    for name in [one for one in os.environ if one.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    return fake
