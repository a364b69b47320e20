"""From the command line to sbatch, with stand-ins for SLURM's commands."""

from __future__ import annotations

import json
import stat
import subprocess
from collections import Counter

import pytest

from hpcserve.config.declared import declared_in
from hpcserve.errors import SlurmError
from hpcserve.launcher import slurm_query
from hpcserve.launcher.followup import parse_job_id
from hpcserve.launcher.request import BATCH_CONFIGS, SERVE_CONFIGS
from hpcserve.launcher.resolve import find


def test_submit_gives_id_run_directory_and_next_steps(slurm, run):
    shown = run("submit", "org/model", "--nodes", "2", "--tp", "16").stdout
    for word in ("job 4711", "hpcserve wait 4711", "hpcserve endpoint 4711 --env", "cancel 4711"):
        assert word in shown
    ref = find("4711")
    assert stat.S_IMODE(ref.job_dir.api_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(ref.job_dir.path.stat().st_mode) == 0o700
    assert "#SBATCH --nodes=2" in ref.job_dir.script.read_text()
    assert slurm.calls("sbatch")[0][0] == "--parsable"


def test_submit_works_without_srun_on_the_login_node(slurm, run):
    slurm.lacks("srun")
    run("submit", "org/model")
    assert find("4711").name == "hpcserve-model"


@pytest.mark.parametrize(
    ("said", "here"),
    [
        ("sinfo: fatal: Could not establish a configuration source", False),
        ("slurm_load_partitions: Unable to contact slurm controller", None),
    ],
)
def test_commands_without_a_cluster_are_no_slurm(slurm, said, here):
    slurm.says("sinfo", stderr=f"{said}\n", code=1)
    if here is None:
        with pytest.raises(SlurmError, match="--launcher local"):
            slurm_query.is_here()
    else:
        assert slurm_query.is_here() is here


def test_what_sbatch_says_is_passed_on(slurm, run):
    slurm.says("sbatch", stderr="sbatch: error: invalid partition specified: x\n", code=1)
    done = run("submit", "org/model", "-p", "x", code=1)
    assert "invalid partition" in done.output


def test_outer_job_does_not_leak(slurm, monkeypatch, run):
    monkeypatch.setenv("SLURM_NTASKS", "9")
    monkeypatch.setenv("SBATCH_PARTITION", "from-env")
    run("submit", "org/model", "--launcher", "slurm")
    assert not [n for n in slurm.environment() if n.startswith(("SLURM_NTASKS", "SBATCH_"))]
    assert "#SBATCH --partition=from-env  # environment variable SBATCH_PARTITION" in (
        find("4711").job_dir.script.read_text()
    )


def test_what_only_sbatch_reads_is_left_to_it(slurm, monkeypatch, run):
    monkeypatch.setenv("SBATCH_WCKEY", "project")
    monkeypatch.setenv("SBATCH_OUTPUT", "elsewhere.log")  # the log would be lost to `logs`
    run("submit", "org/model", "--launcher", "slurm")
    seen = slurm.environment()
    assert (seen.get("SBATCH_WCKEY"), seen.get("SBATCH_OUTPUT")) == ("project", None)


def test_precedence_is_command_line_environment_cluster_preset(slurm, monkeypatch, tmp_path, run):
    cluster, preset = tmp_path / "c.yaml", tmp_path / "m.yaml"
    cluster.write_text("partition: c\naccount: c\nqos: c\ntime: '5'\n")
    preset.write_text("partition: m\naccount: m\nqos: m\ntime: '6'\ncomment: m\nmodel: org/m\n")
    monkeypatch.setenv("SBATCH_ACCOUNT", "e")
    monkeypatch.setenv("SBATCH_PARTITION", "e")
    monkeypatch.setenv("HPCSERVE_QOS", "e")
    words = ["render", "submit", "--cluster", str(cluster), "--preset", str(preset)]
    text = run(*words, "--partition", "line").stdout
    for line in (
        "--partition=line  # command line",
        "--account=e  # environment variable SBATCH_ACCOUNT",
        "--qos=e  # environment variable HPCSERVE_QOS",
        f"--time=5  # cluster file {cluster}",
        f"--comment=m  # model file {preset}",
    ):
        assert f"#SBATCH {line}" in text
    assert slurm.calls("sbatch") == []  # render submits nothing


def test_render_prints_the_script_alone(slurm, run):
    done = run("render", "submit", "org/model", "--nodes", "2", "--tp", "16")
    assert done.stdout.startswith("#!/bin/bash")
    assert "crosses nodes" in done.stderr
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.parametrize("configs", [SERVE_CONFIGS, BATCH_CONFIGS])
def test_no_two_options_share_a_name(configs):
    declared = declared_in(configs)
    names = [one.name for one in declared]
    flags = [flag for one in declared for flag in (*one.option.flags, *one.option.off_flags)]
    assert [one for one, number in Counter([*names, *flags]).items() if number > 1] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--partitoin", "x"], "--partition"),
        (["--nodes", "3", "--tp", "16"], "valid --nodes: 1, 2, 4, 8, 16"),
        (["--fabric", "ethernet"], "efa"),
        (["--container-runtime", "docker"], "--container IMAGE"),
        (["--env", "NOVALUE"], "KEY=VALUE"),
        (["--preset", "nonsense"], "llama-3.1-8b"),
        (["--sbatch", "array=0-3"], "--replicas"),
        (["--sbatch", "--output=x.log"], "--run-dir"),
    ],
)
def test_mistakes_are_refused_with_the_fix(slurm, words, said, run):
    assert said in run("submit", "org/model", *words, code=2).output
    assert slurm.calls("sbatch") == []


def test_engine_options_in_both_dialects(slurm, run):
    for words in (
        [
            "--tensor-parallel-size",
            "2",
            "--max-model-len",
            "512",
            "--gpu-memory-utilization",
            "0.5",
        ],
        ["--tp-size", "2", "--context-length", "512", "--mem-fraction-static", "0.5"],
    ):
        text = run("render", "submit", "org/model", *words).stdout
        for line in ("--tp 2", "--context-length 512", "--mem-fraction-static 0.5"):
            assert f"  {line}\n" in text


def test_a_model_of_the_hubs_cache_is_mounted_with_its_blobs(slurm, tmp_path, run):
    model = tmp_path / "hub" / "models--org--m"
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "blobs").mkdir()
    words = ["--container", "/a.sif", "--run-dir", "/r"]
    text = run("render", "submit", str(model / "snapshots" / "abc"), *words).stdout
    assert f"  --bind {model}:{model}\n" in text
    assert f"  --model {model}/snapshots/abc\n" in text


def test_without_a_cluster_file_its_json_is_empty_and_not_nothing(slurm, run):
    shown = json.loads(run("cluster", "show", "--json").stdout)
    assert shown == {"file": None, "options": {}}


def test_submit_refuses_what_cannot_fit(slurm, tmp_path, run):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    done = run("submit", str(tmp_path), "--gpu", "h100", "--tp", "1", code=2)
    assert "does not fit" in done.output
    assert "--tp 4" in done.output or "--tp 2" in done.output
    run("submit", str(tmp_path), "--gpu", "h100", "--tp", "4")


LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "vocab_size": 128256,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("answer", "job_id"), [("12\n", "12"), ("12;cluster\n", "12"), ("Hello\n13\n", "13")]
)
def test_id_of_a_new_job(answer, job_id):
    assert parse_job_id(answer) == job_id


def test_no_id_is_an_error():
    with pytest.raises(SlurmError, match="no job id"):
        parse_job_id("Submitted, somehow")
