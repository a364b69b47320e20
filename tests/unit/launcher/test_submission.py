"""From the command line to sbatch, with stand-ins for SLURM's commands."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import hpcserve
from hpcserve.cli import batch as cli_batch
from hpcserve.cli._jobs import layered_settings
from hpcserve.cli.main import main
from hpcserve.config.declared import declared_in
from hpcserve.errors import SlurmError
from hpcserve.launcher import slurm_query
from hpcserve.launcher.base import JobState
from hpcserve.launcher.followup import parse_job_id
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.request import BATCH_CONFIGS, SERVE_CONFIGS
from hpcserve.launcher.resolve import find
from hpcserve.launcher.status import status

CONFIGS = Path(hpcserve.__file__).parent / "configs"


def run(*words, code=0):
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture
def slurm(fake_slurm, monkeypatch, tmp_path):
    fake_slurm.says("sbatch", stdout="4711\n", stderr="*** Welcome! Unable to read the news. ***\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HPCSERVE_CLUSTER", raising=False)
    monkeypatch.setenv("HPCSERVE_LAUNCHER", "auto")
    return fake_slurm


def test_submit_gives_id_run_directory_and_next_steps(slurm):
    shown = run("submit", "org/model", "--nodes", "2", "--tp", "16").stdout
    for word in ("job 4711", "hpcserve wait 4711", "hpcserve endpoint 4711 --env", "cancel 4711"):
        assert word in shown
    ref = find("4711")
    assert stat.S_IMODE(ref.job_dir.api_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(ref.job_dir.path.stat().st_mode) == 0o700
    assert "#SBATCH --nodes=2" in ref.job_dir.script.read_text()
    assert slurm.calls("sbatch")[0][0] == "--parsable"


def test_submit_works_without_srun_on_the_login_node(slurm):
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


def test_what_sbatch_says_is_passed_on(slurm):
    slurm.says("sbatch", stderr="sbatch: error: invalid partition specified: x\n", code=1)
    done = run("submit", "org/model", "-p", "x", code=1)
    assert "invalid partition" in done.output


def test_outer_job_does_not_leak(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "9")
    monkeypatch.setenv("SBATCH_PARTITION", "from-env")
    run("submit", "org/model", "--launcher", "slurm")
    assert not [n for n in slurm.environment() if n.startswith(("SLURM_NTASKS", "SBATCH_"))]
    assert "#SBATCH --partition=from-env  # environment variable SBATCH_PARTITION" in (
        find("4711").job_dir.script.read_text()
    )


def test_what_only_sbatch_reads_is_left_to_it(slurm, monkeypatch):
    monkeypatch.setenv("SBATCH_WCKEY", "project")
    monkeypatch.setenv("SBATCH_OUTPUT", "elsewhere.log")  # the log would be lost to `logs`
    run("submit", "org/model", "--launcher", "slurm")
    seen = slurm.environment()
    assert (seen.get("SBATCH_WCKEY"), seen.get("SBATCH_OUTPUT")) == ("project", None)


def test_precedence_is_command_line_environment_cluster_preset(slurm, monkeypatch, tmp_path):
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


def test_render_prints_the_script_alone(slurm):
    done = run("render", "submit", "org/model", "--nodes", "2", "--tp", "16")
    assert done.stdout.startswith("#!/bin/bash")
    assert "crosses nodes" in done.stderr
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A folder with an input, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    return tmp_path


def test_render_batch_prints_what_batch_would_submit(slurm, tmp_path, rows):
    words = ["a b.jsonl", "-o", "out.jsonl", "--run-dir", str(tmp_path / "run"), "--top-k", "7"]
    shown = run("render", "batch", *words).stdout
    subprocess.run(["bash", "-n"], input=shown, text=True, check=True)
    assert shown.startswith("#!/bin/bash")
    assert "#   top_k = 7  (command line)" in shown
    assert slurm.calls("sbatch") == []
    assert not (tmp_path / "run").exists()
    run("batch", *words, "--launcher", "slurm")
    assert find("4711").job_dir.script.read_text() == shown


ARRAY = ["batch", "a b.jsonl", "-o", "out.jsonl", "--launcher", "slurm"]


def test_batch_jobs_are_a_job_array_whose_run_is_begun_once(slurm, rows):
    said = run(*ARRAY, "--jobs", "3", "--sampling", "presence_penalty=0.5").stdout
    assert "hpcserve batch status" in said
    script = find("4711").job_dir.script.read_text()
    assert "#SBATCH --array=0-2" in script
    assert len(slurm.calls("sbatch")) == 1
    assert [one.path.name for one in find("4711").job_dir.tasks()] == ["0", "1", "2"]
    manifest = json.loads((rows / "out.jsonl.hpcserve" / "manifest.json").read_bytes())
    assert manifest["argv"] == [*ARRAY[1:], "--jobs", "3", "--sampling", "presence_penalty=0.5"]
    # A task runs the same run alone: it neither starts over nor starts workers of its own.
    words = task_words(script)
    assert words[:3] == [str(rows / "a b.jsonl"), "--output", str(rows / "out.jsonl")]
    assert words[words.index("--jobs") + 1] == "1"
    assert "--fresh" not in words


def task_words(script):
    """The words of `hpcserve batch` on a node."""
    node = script.partition("\nnode=(")[2].partition("\n)\n")[0]
    return shlex.split(node.partition("  --\n")[2])


@pytest.mark.parametrize("number", ["1", "2"])
def test_starting_over_is_done_at_submission_and_by_no_task(slurm, rows, number, monkeypatch):
    run(*ARRAY, "--jobs", number)
    first = json.loads((rows / "out.jsonl.hpcserve" / "manifest.json").read_bytes())["run_id"]
    (rows / "out.jsonl").write_text("the answers of before\n")
    run(*ARRAY, "--jobs", number, "--overwrite", "--run-dir", str(rows / "second"))
    again = json.loads((rows / "out.jsonl.hpcserve" / "manifest.json").read_bytes())["run_id"]
    assert first != again
    words = task_words(find("4711").job_dir.script.read_text())
    assert "--no-fresh" in words
    # What the task does with a variable that is meant for the submission: nothing.
    monkeypatch.setenv("HPCSERVE_FRESH", "1")
    monkeypatch.setenv("HPCSERVE_JOBS", "5")
    context = cli_batch.command.make_context("batch", words)
    settings = layered_settings(context, BATCH_CONFIGS, None, None)
    assert (settings["fresh"].value, settings["jobs"].value) == (False, 1)


def test_mistakes_are_refused_before_anything_is_queued(slurm, rows):
    (rows / "twice.jsonl").write_text('{"id": "x", "prompt": "one"}\n' * 2)
    for words, said in (
        (["nothing.jsonl", "-o", "out.jsonl"], "no input file nothing.jsonl"),
        (["twice.jsonl", "-o", "out.jsonl"], "line 1, line 2"),
        (["a b.jsonl", "-o", "out.docx"], "known endings"),
        (["a b.jsonl", "-o", "no/out.jsonl"], "no folder no"),
        (["a b.jsonl", "-o", "out.jsonl", "--jobs", "2", "--replicas", "3"], "the same"),
    ):
        assert said in run("batch", *words, "--launcher", "slurm", code=2).output
    assert slurm.calls("sbatch") == []


def test_a_model_that_lies_on_the_nodes_only_is_no_obstacle(slurm, rows):
    (rows / "out.jsonl").write_text("old\n")
    run(*ARRAY, "--jobs", "2", "--model", "org/elsewhere", "--fresh")
    assert not (rows / "out.jsonl.hpcserve" / "manifest.json").exists()
    assert not (rows / "out.jsonl").exists()  # no task may take it for somebody else's
    assert len(slurm.calls("sbatch")) == 1


def test_a_run_that_is_complete_is_not_submitted_again(slurm, rows):
    run(*ARRAY[:-2], "--launcher", "local", "--max-tokens", "2")
    done = run(*ARRAY, "--jobs", "4", "--max-tokens", "2")
    assert "complete" in done.output
    assert slurm.calls("sbatch") == []


@pytest.mark.parametrize("configs", [SERVE_CONFIGS, BATCH_CONFIGS])
def test_no_two_options_share_a_name(configs):
    declared = declared_in(configs)
    names = [one.name for one in declared]
    flags = [flag for one in declared for flag in (*one.option.flags, *one.option.off_flags)]
    assert [one for one, number in Counter([*names, *flags]).items() if number > 1] == []


@pytest.mark.parametrize("verb", [["render", "batch"], ["batch", "--launcher", "slurm"]])
def test_a_job_takes_no_pipe(slurm, verb):
    done = run(*verb, "-", "-o", "out.jsonl", code=2)
    assert "--launcher local" in done.output
    assert slurm.calls("sbatch") == []


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
def test_mistakes_are_refused_with_the_fix(slurm, words, said):
    assert said in run("submit", "org/model", *words, code=2).output
    assert slurm.calls("sbatch") == []


def test_engine_options_in_both_dialects(slurm):
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


def test_a_model_of_the_hubs_cache_is_mounted_with_its_blobs(slurm, tmp_path):
    model = tmp_path / "hub" / "models--org--m"
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "blobs").mkdir()
    words = ["--container", "/a.sif", "--run-dir", "/r"]
    text = run("render", "submit", str(model / "snapshots" / "abc"), *words).stdout
    assert f"  --bind {model}:{model}\n" in text
    assert f"  --model {model}/snapshots/abc\n" in text


def test_without_a_cluster_file_its_json_is_empty_and_not_nothing(slurm):
    shown = json.loads(run("cluster", "show", "--json").stdout)
    assert shown == {"file": None, "options": {}}


def test_submit_refuses_what_cannot_fit(slurm, tmp_path):
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


def write_state(job_dir, **values):
    base = {
        "state": "ready",
        "job_id": "4711",
        "heartbeat_at": time.time(),
        "cause": None,
    }
    job_dir.state.write_text(json.dumps({**base, **values}))


CRASH = {"kind": "crashed", "detail": "x"}
QUEUE = "4711|{state}|None|2030-01-01T00:00:00|n1|1|name\n"


@pytest.mark.parametrize(
    ("queue", "said", "state", "cause"),
    [
        ("PENDING", None, JobState.PENDING, None),
        ("RUNNING", None, JobState.STARTING, None),
        ("RUNNING", {}, JobState.READY, None),
        ("TIMEOUT", {}, JobState.DEAD, "time limit"),
        ("NODE_FAIL", {}, JobState.DEAD, "node failure"),
        ("OUT_OF_MEMORY", {}, JobState.DEAD, "out of memory"),
        ("CANCELLED", None, JobState.DEAD, "cancelled"),
        (
            "FAILED",
            {"state": "dead", "cause": {"kind": "crashed", "detail": "x"}},
            JobState.DEAD,
            "crashed: x",
        ),
        ("COMPLETED", {"state": "finished"}, JobState.FINISHED, None),
        ("", {"heartbeat_at": 0}, JobState.DEAD, "crashed: it vanished"),  # forgotten by SLURM
    ],
)
def test_state_is_the_supervisors_word_checked_by_slurm(slurm, queue, said, state, cause):
    run("submit", "org/model")
    slurm.says("sacct", stderr="Slurm accounting storage is disabled\n", code=1)
    slurm.says("squeue", stdout=QUEUE.format(state=queue) if queue else "")
    if said is not None:
        write_state(find("4711").job_dir, **said)
    found = status(find("4711"), thorough=True)
    assert found.state is state
    assert (found.cause or "").startswith(cause or "")
    assert bool(found.cause) is bool(cause)


@pytest.mark.parametrize(("age", "state"), [(0, JobState.READY), (3600, JobState.UNKNOWN)])
def test_a_slurm_that_does_not_answer_says_nothing_about_the_job(slurm, age, state):
    run("submit", "org/model")
    slurm.says(
        "squeue", stderr="slurm_load_jobs error: Unable to contact slurm controller\n", code=1
    )

    write_state(find("4711").job_dir, heartbeat_at=time.time() - age)
    found = status(find("4711"))
    assert found.state is state
    assert found.slurm_state is None


def test_a_supervisor_that_has_just_spoken_needs_no_second_opinion(slurm):
    run("submit", "org/model")
    write_state(find("4711").job_dir)
    assert "ready" in run("ps").stdout
    assert slurm.calls("squeue") == []
    write_state(find("4711").job_dir, heartbeat_at=0)
    run("ps")
    assert len(slurm.calls("squeue")) == 1


def test_wait_fails_at_once_for_a_dead_job(slurm):
    run("submit", "org/model")
    slurm.says("squeue", stdout=QUEUE.format(state="OUT_OF_MEMORY"))
    assert "out of memory" in run("wait", "4711", code=1).output


def test_accounting_is_asked_when_the_queue_has_forgotten(slurm):
    slurm.says("sacct", stdout="9|CANCELLED by 0|None|2030-01-01T00:00:00|n1|1|x\n")
    assert slurm_query.job("9").state == "CANCELLED"


def test_torn_files_read_as_none(slurm):
    run("submit", "org/model")
    job_dir = JobDir(find("4711").job_dir.path)
    job_dir.state.write_text('{"state": "rea')
    job_dir.events.write_text('{"event": "started"}\n{"event": "sta')
    slurm.says("squeue", stdout=QUEUE.format(state="RUNNING"))
    assert status(find("4711")).state is JobState.STARTING
    assert job_dir.read_events() == [{"event": "started"}]


@pytest.mark.parametrize("preset", sorted((CONFIGS / "models").glob("*.yaml")), ids=str)
def test_every_model_preset_renders(slurm, preset):
    text = run("render", "submit", "--preset", preset.stem, "--cluster", "efa-p5").stdout
    assert f"model preset {preset.stem}" in text


@pytest.mark.parametrize("preset", sorted((CONFIGS / "clusters").glob("*.yaml")), ids=str)
def test_every_cluster_preset_renders(slurm, preset):
    text = run("render", "submit", "org/model", "--cluster", preset.stem).stdout
    assert f"cluster preset {preset.stem}" in text


def test_a_saved_preset_gives_the_same_script(slurm, tmp_path):
    words = ["--tp", "2", "--no-auth", "--mount", "/a:/b", "--mount", "/c:/d", "--time", "1:00"]
    saved = run("presets", "save", "my-70b", "org/m", "--about", "ours: 2 GPUs", *words)
    assert "no-auth" not in saved.stdout  # by the option's own name
    path = tmp_path / ".config/hpcserve/presets/my-70b.yaml"
    assert saved.stdout == path.read_text()
    assert "ours: 2 GPUs" in run("presets", "list").stdout
    assert run("presets", "show", "my-70b").stdout == path.read_text()

    def script(*more):
        text = run("render", "submit", "--run-dir", "/r", *more).stdout
        return [line.partition("  # ")[0] for line in text.splitlines() if line[:4] != "#   "]

    assert script("--preset", "my-70b") == script("org/m", *words)
    again = run("presets", "save", "my-70b", "org/other", code=2)
    assert "--force replaces it" in again.stderr
    run("presets", "save", "my-70b", "--preset", "my-70b", "--tp", "4", "--force")
    assert "tp: 4" in path.read_text() and "model: org/m" in path.read_text()


def test_a_preset_keeps_what_is_not_its_own_out(slurm, monkeypatch):
    monkeypatch.setenv("HPCSERVE_CONTEXT_LENGTH", "512")
    words = ["--api-key", "secret", "--run-dir", "/r", "--cluster", "efa-p5", "--tp", "2"]
    text = run("presets", "save", "small", *words).stdout
    assert text.splitlines()[1:] == ["tp: 2"]
    assert "no name for a preset" in run("presets", "save", "a/b", code=2).stderr


LIGHT = [
    "submit org/m --nodes 2 --tp 16",
    "ps",
    "status 4711",
    "ps --json",
    "presets list --json",
    "cluster show",
    "render submit org/m --nodes 2 --tp 16",
]


@pytest.mark.parametrize("words", LIGHT)
def test_commands_take_less_than_a_second(slurm, words):
    run("submit", "org/model")
    slurm.says("squeue", stdout=QUEUE.format(state="RUNNING"))
    code = (
        "import sys; from hpcserve.cli.main import main\n"
        f"try: main({words.split()!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    # By the processor's clock, and on a slow machine against Python with the same libraries.
    plain = min(seconds_of("import asyncio, json, subprocess, click, yaml") for _ in range(2))
    assert min(seconds_of(code) for _ in range(2)) < max(0.8, 6 * plain)


def seconds_of(code):
    """Of processor time that a Python process takes for `code`."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
