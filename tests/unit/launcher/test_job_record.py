"""What a supervisor says of its job, in the order in which others may rely on it."""

from __future__ import annotations

from hpcserve.cli import job as job_command
from hpcserve.launcher import job_record
from hpcserve.launcher.base import JobEnvironment, JobState
from hpcserve.launcher.files import read_json, write_beat
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.job_record import JobRecord
from hpcserve.launcher.readiness import Server


def test_who_reads_ready_finds_the_address(tmp_path, monkeypatch):
    addresses = {}

    def observed(path, content):
        write_beat(path, content)
        endpoint = read_json(tmp_path / "endpoint.json") or {}
        addresses[content["state"]] = endpoint.get("url")

    monkeypatch.setattr(job_record, "write_beat", observed)
    environment = JobEnvironment("7", 0, 1, ("node1",), "node1")
    record = JobRecord(JobDir(tmp_path), environment, "serve")
    record.begin()
    record.ready(Server("10.0.0.1", 8000))
    assert addresses == {
        JobState.STARTING.value: None,
        JobState.READY.value: "http://10.0.0.1:8000/v1",
    }


def test_a_batch_run_whose_files_cannot_be_read_ends_no_supervisor(tmp_path):
    run = tmp_path / "out.jsonl.hpcserve"
    run.mkdir()
    (run / "manifest.json").write_text("{")
    assert job_command._rows_done(["srun", "--output", str(tmp_path / "out.jsonl")]) == 0
