"""`hpcserve batch VERB` from the command line, with a core that has no model."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hpcserve.batch import client_engine
from hpcserve.batch.deadline import Deadline
from hpcserve.batch.jobs import device_share, other_workers, without_option
from hpcserve.batch.lease import Claims, Owner
from hpcserve.batch.run_dir import RunDir
from hpcserve.batch.verbs import manifest_of
from hpcserve.batch.verify import verify_run
from hpcserve.cli.main import main
from hpcserve.config.batch import BatchConfig
from hpcserve.errors import ConfigError
from hpcserve.fake_engine import write_byte_tokenizer

Batch = Callable[..., Result]


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    backend = functools.partial(client_engine.ClientBackend, module="hpcserve.fake_engine")
    monkeypatch.setattr(client_engine, "ClientBackend", backend)
    (tmp_path / "echo").mkdir()
    write_byte_tokenizer(tmp_path / "echo")
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(main, ["batch", *args])


def test_the_life_of_a_run_by_its_verbs(tmp_path: Path, batch: Batch) -> None:
    rows = ['{"custom_id": "a", "prompt": "one"}', "broken", '{"custom_id": "c", "prompt": "two"}']
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    first = batch("in.jsonl", "-o", "out.jsonl", "--model", "echo", "--max-tokens", "9")
    assert first.exit_code == 3, first.stderr

    status = json.loads(batch("status", "out.jsonl", "--json").stdout)
    assert (status["state"], status["num_ok"], status["num_failed"]) == ("complete", 2, 1)
    assert "complete" in batch("status", "out.jsonl.hpcserve").stdout
    assert "every row has exactly one" in batch("verify", "out.jsonl").stdout

    again = batch("retry-errors", "out.jsonl")
    assert again.exit_code == 3
    assert "1 failed rows are answered again" in again.stderr
    assert batch("verify", "out.jsonl").exit_code == 0

    Path("out.jsonl").unlink()
    assert "there is no output" in batch("verify", "out.jsonl.hpcserve").stderr
    assert "3 rows are in" in batch("merge", "out.jsonl.hpcserve").stdout
    assert batch("merge", "out.jsonl", "-o", "other.parquet").exit_code == 0

    assert batch("cancel", "out.jsonl").exit_code == 0
    assert batch("resume", "out.jsonl").exit_code == 3
    assert not RunDir.find("out.jsonl").cancelled.exists()
    refused = batch("in.jsonl", "-o", "out.jsonl", "--model", "echo", "--max-tokens", "8")
    assert refused.exit_code == 2
    assert "sampling: max_tokens was 9, is 8" in refused.stderr


def test_resume_is_the_first_command_from_where_it_was_given(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "one"}\n')
    assert batch("in.jsonl", "-o", "out.jsonl", "--model", "echo", "--fresh").exit_code == 0
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert batch("resume", str(tmp_path / "out.jsonl.hpcserve")).exit_code == 0
    assert (tmp_path / "out.jsonl").is_file()
    assert Path.cwd() == tmp_path / "elsewhere"
    manifest = tmp_path / "out.jsonl.hpcserve" / "manifest.json"
    found = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps({**found, "cwd": str(tmp_path / "gone")}))
    refused = batch("resume", str(tmp_path / "out.jsonl.hpcserve"))
    assert refused.exit_code == 2
    assert "which is gone; give the first command once more" in refused.stderr


def test_a_misspelt_verb_is_no_input(batch: Batch) -> None:
    result = batch("statsu", "out.jsonl")
    assert result.exit_code == 2
    assert "did you mean `batch status`?" in result.stderr


def test_no_such_run(batch: Batch) -> None:
    result = batch("status", "nothing")
    assert result.exit_code == 2
    assert "there is no batch run nothing" in result.stderr


def test_the_deadline_is_the_supervisor_s_then_slurm_s(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"end_time": 5000000000.0}')
    both = {"HPCSERVE_RUN_DIR": str(tmp_path), "SLURM_JOB_END_TIME": "4000000000"}
    left = [
        Deadline(None, 10.0, both).seconds_left(),
        Deadline(None, 10.0, {"SLURM_JOB_END_TIME": "4000000000"}).seconds_left(),
        Deadline(3e9, 10.0, both).seconds_left(),
        Deadline(None, 10.0, {}).seconds_left(),
    ]
    assert left[0] - left[1] == pytest.approx(1e9, abs=600.0)
    assert left[1] - left[2] == pytest.approx(1e9, abs=600.0)
    assert left[3] == float("inf")
    assert Deadline(None, 10.0, both).admits(60.0)


def test_a_lease_is_taken_over_from_an_earlier_run_of_the_job_only(
    tmp_path: Path, batch: Batch
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "one"}\n')
    batch("in.jsonl", "-o", "out.jsonl", "--model", "echo")
    run_dir = RunDir.find("out.jsonl")
    manifest = manifest_of(run_dir)
    run_dir.shard(0).unlink()
    first = Owner("one", "far-1", 17, 1.0, job_id="5", restart="0")
    held = Claims(run_dir, manifest, first)
    assert held.next() is not None
    other = Claims(run_dir, manifest, Owner("two", "far-2", 17, 1.0, job_id="6"))
    assert other.next() is None
    requeued = Claims(run_dir, manifest, Owner("three", "far-2", 3, 9.0, job_id="5", restart="1"))
    claim = requeued.next()
    assert claim is not None
    assert not claim.shared
    # The ghost gives up what is no longer its own: the lease stays.
    held.close()
    assert run_dir.lease(0).exists()
    patient = Claims(run_dir, manifest, Owner("four", "far-3", 3, 9.0), stale_s=0.0)
    assert patient.next() is not None
    for one in (other, requeued, patient):
        one.close()


def test_jobs_share_gpus_and_words() -> None:
    visible = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert device_share(visible, 1, 2) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert device_share({}, 1, 2) == {}
    with pytest.raises(ConfigError, match="cannot be shared"):
        device_share(visible, 0, 3)
    assert without_option(["a", "--jobs", "3", "--jobs=3", "-o", "b"], "--jobs") == ["a", "-o", "b"]


def test_two_commands_make_one_output(tmp_path: Path) -> None:
    """Real processes, each with an engine process of its own."""
    rows = [json.dumps({"prompt": f"row {n}", "max_tokens": 3}) + "\n" for n in range(120)]
    (tmp_path / "in.jsonl").write_text("".join(rows))
    (tmp_path / "echo").mkdir()
    write_byte_tokenizer(tmp_path / "echo")
    program = (
        "import functools, sys\n"
        "from hpcserve.batch import client_engine as c\n"
        "c.ClientBackend = functools.partial(c.ClientBackend, module='hpcserve.fake_engine')\n"
        "from hpcserve.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    words = ["in.jsonl", "-o", "out.jsonl", "--model", "echo", "--shard-rows", "10"]
    command = [sys.executable, "-c", program, "batch", *words]
    done = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait(timeout=60) for one in done] == [0, 0]
    assert verify_run(RunDir.of_output(tmp_path / "out.jsonl")).problems == []


def test_jobs_start_the_same_command_beside_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], str]] = []

    class Child:
        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            started.append((command, env["CUDA_VISIBLE_DEVICES"]))

        def poll(self) -> int:
            return 0

        wait = poll

    monkeypatch.setattr(subprocess, "Popen", Child)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    config = BatchConfig(inputs=("i",), output=str(tmp_path / "out.jsonl"), jobs=3, fresh=True)
    words = ["i", "-o", "out.jsonl", "--jobs", "3", "--fresh"]
    begun: list[int] = []

    def begin() -> bool:
        begun.append(len(started))
        RunDir.of_output(tmp_path / "out.jsonl").create()
        return True

    with other_workers(words, config, begin) as mine:
        assert not mine.fresh
        assert mine.idle_timeout_s == 0.0  # it waits for the others, so it may not leave
    assert begun == [0]  # once, and before anyone is started
    assert [command[-3:] for command, _ in started] == [["i", "-o", "out.jsonl"]] * 2
    assert all(command[4:6] == ["--idle-timeout", "120"] for command, _ in started)
    assert [gpus for _, gpus in started] == ["5", "6"]
    pipe = BatchConfig(inputs=("-",))
    with pytest.raises(ConfigError, match="stdin"), other_workers([], pipe, begin):
        pass
    started.clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    with other_workers(words, config, lambda: False):
        assert started == []  # the run is complete


def test_a_worker_that_leaves_the_rest_to_others_says_so(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "one"}\n')
    monkeypatch.setattr("hpcserve.batch.run.run_batch", lambda *args, **kwargs: None)
    result = batch("in.jsonl", "-o", "out.jsonl", "--model", "echo")
    assert result.exit_code == 0
    assert "other workers finish the run" in result.stderr
