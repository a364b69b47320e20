"""SLURM's commands as stand-ins at the front of PATH."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from hpcserve.cli.main import main
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


@pytest.fixture
def slurm(fake_slurm, monkeypatch, tmp_path):
    """A cluster that takes every job as number 4711, and a user without settings."""
    fake_slurm.says("sbatch", stdout="4711\n", stderr="*** Welcome! Unable to read the news. ***\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HPCSERVE_CLUSTER", raising=False)
    monkeypatch.setenv("HPCSERVE_LAUNCHER", "auto")
    return fake_slurm


@pytest.fixture
def run():
    """Run `hpcserve WORDS` in this process; its exit code must be `code`."""

    def invoke(*words, code=0):
        done = CliRunner().invoke(main, list(words))
        assert done.exit_code == code, (done.output, done.exception)
        return done

    return invoke
