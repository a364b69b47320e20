"""From `hpcserve batch` to sbatch, with stand-ins for SLURM's commands."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest

from hpcserve.cli import batch as cli_batch
from hpcserve.cli._jobs import layered_settings
from hpcserve.launcher.request import BATCH_CONFIGS
from hpcserve.launcher.resolve import find

ARRAY = ["batch", "a b.jsonl", "-o", "out.jsonl", "--launcher", "slurm"]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A folder with an input, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    return tmp_path


def test_render_batch_prints_what_batch_would_submit(slurm, tmp_path, rows, run):
    words = ["a b.jsonl", "-o", "out.jsonl", "--run-dir", str(tmp_path / "run"), "--top-k", "7"]
    shown = run("render", "batch", *words).stdout
    subprocess.run(["bash", "-n"], input=shown, text=True, check=True)
    assert shown.startswith("#!/bin/bash")
    assert "#   top_k = 7  (command line)" in shown
    assert slurm.calls("sbatch") == []
    assert not (tmp_path / "run").exists()
    run("batch", *words, "--launcher", "slurm")
    assert find("4711").job_dir.script.read_text() == shown


def test_batch_jobs_are_a_job_array_whose_run_is_begun_once(slurm, rows, run):
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
def test_starting_over_is_done_at_submission_and_by_no_task(slurm, rows, number, monkeypatch, run):
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


def test_mistakes_are_refused_before_anything_is_queued(slurm, rows, run):
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


def test_a_model_that_lies_on_the_nodes_only_is_no_obstacle(slurm, rows, run):
    (rows / "out.jsonl").write_text("old\n")
    run(*ARRAY, "--jobs", "2", "--model", "org/elsewhere", "--fresh")
    assert not (rows / "out.jsonl.hpcserve" / "manifest.json").exists()
    assert not (rows / "out.jsonl").exists()  # no task may take it for somebody else's
    assert len(slurm.calls("sbatch")) == 1


def test_a_run_that_is_complete_is_not_submitted_again(slurm, rows, run):
    run(*ARRAY[:-2], "--launcher", "local", "--max-tokens", "2")
    done = run(*ARRAY, "--jobs", "4", "--max-tokens", "2")
    assert "complete" in done.output
    assert slurm.calls("sbatch") == []


@pytest.mark.parametrize("verb", [["render", "batch"], ["batch", "--launcher", "slurm"]])
def test_a_job_takes_no_pipe(slurm, verb, run):
    done = run(*verb, "-", "-o", "out.jsonl", code=2)
    assert "--launcher local" in done.output
    assert slurm.calls("sbatch") == []
