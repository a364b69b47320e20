from __future__ import annotations

import os
import subprocess
import time

import pytest

from hpcserve.errors import ConfigError
from hpcserve.launcher.container import _select as runtimes
from hpcserve.launcher.container.base import ContainerSpec
from hpcserve.launcher.container.docker import TASK_SCRIPT


@pytest.mark.parametrize(
    ("image", "runtime"), [("/a/b.sif", "apptainer"), ("/a/b.sqsh", "pyxis"), (None, "none")]
)
def test_auto_goes_by_the_image(image, runtime):
    assert runtimes.choose("auto", image).name == runtime


def test_auto_says_so_where_it_cannot_tell(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="--container-runtime"):
        runtimes.choose("auto", "org/image:1")


@pytest.mark.parametrize(
    ("runtime", "image"), [("docker", "/a.sqsh"), ("pyxis", "/a.tar"), ("podman-hpc", "/a.sif")]
)
def test_an_image_of_the_wrong_kind_is_refused(runtime, image):
    with pytest.raises(ConfigError, match="image"):
        runtimes.choose(runtime, image)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ("nvcr.io/nvidia/pytorch:25.01", "nvcr.io#nvidia/pytorch:25.01"),
        ("docker://org/image:1", "org/image:1"),
        ("/images/a.sqsh", "/images/a.sqsh"),
    ],
)
def test_pyxis_names_images_as_enroot_does(image, named):
    options = runtimes.load("pyxis").srun_options(ContainerSpec(image))
    assert options[0].removeprefix("--container-image=").strip("'") == named


@pytest.mark.parametrize(
    ("installed", "command"),
    [(["singularity"], "singularity"), (["singularity", "apptainer"], "apptainer")],
)
def test_apptainer_goes_by_its_older_name_too(monkeypatch, tmp_path, installed, command):
    for name in installed:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    runtime = runtimes.choose("auto", "org/image:1")
    assert runtime.prefix(ContainerSpec("org/image:1"))[0][0] == command


def fake_docker(folder, body):
    folder.mkdir()
    docker = folder / "docker"
    docker.write_text(f'#!/bin/bash\necho "docker $*" >> {folder}/calls\n{body}\n')
    docker.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}:/usr/bin:/bin",
        "SLURM_JOB_ID": "77",
        "SLURM_NODEID": "1",
    }


def run_task(env, *words):
    return subprocess.run(
        ["bash", TASK_SCRIPT, "docker", *words], env=env, capture_output=True, text=True, timeout=60
    )


def test_docker_script_touches_its_own_container_only(tmp_path):
    env = fake_docker(tmp_path / "bin", "case $1 in run) exit 7;; esac")
    env |= {"CUDA_VISIBLE_DEVICES": "2,3", "NCCL_NET": "AWS Libfabric", "UNRELATED": "x"}
    done = run_task(
        env,
        *("org/image", "--gpus", "--env", "PROXY", "--mount", "/a b:/c"),
        *("--", "hpcserve", "node", "it's $x"),
    )
    assert done.returncode == 7
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert [one for one in calls if " rm " in one] == ["docker rm --force hpcserve-77-1"] * 2
    (run,) = [one for one in calls if one.startswith("docker run")]
    assert "--name hpcserve-77-1" in run
    assert '--gpus "device=2,3"' in run
    assert "--volume /a b:/c" in run
    assert "--env NCCL_NET" in run
    assert "--env PROXY" in run
    assert "UNRELATED" not in run
    assert run.endswith("org/image hpcserve node it's $x")


def test_docker_script_loads_a_tarball(tmp_path):
    env = fake_docker(tmp_path / "bin", 'case $1 in load) echo "Loaded image: org/loaded:3";; esac')
    assert run_task(env, "/images/a.tar.gz", "--", "true").returncode == 0
    assert "org/loaded:3 true" in (tmp_path / "bin" / "calls").read_text()


def test_docker_script_passes_sigterm_on(tmp_path):
    body = "[[ $1 != run ]] || { trap 'echo got term; exit 0' TERM; echo up; sleep 90 & wait; }"
    env = fake_docker(tmp_path / "bin", body)
    output = tmp_path / "output"
    with output.open("w") as stream:
        process = subprocess.Popen(
            ["bash", TASK_SCRIPT, "docker", "org/image", "--", "true"], env=env, stdout=stream
        )
    deadline = time.monotonic() + 60
    while output.read_text() != "up\n" and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert output.read_text() == "up\ngot term\n"
