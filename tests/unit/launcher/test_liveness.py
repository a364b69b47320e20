"""Silence counts against a node only while somebody listened."""

from __future__ import annotations

import pytest

from hpcserve.launcher import liveness
from hpcserve.launcher.files import write_json
from hpcserve.launcher.job_dir import JobDir
from hpcserve.launcher.liveness import Liveness


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """(who watches one rank with a timeout of 60 s, a clock to be moved)"""

    class Clock:
        now = 1000.0

        @classmethod
        def monotonic(cls):
            return cls.now

    monkeypatch.setattr(liveness, "time", Clock)
    job_dir = JobDir.create(tmp_path / "run")
    write_json(job_dir.node(0), {"beat": 1, "incarnation": "7.0", "host": "n1"})
    watching = Liveness(job_dir, "7.0", 1, 60.0)
    watching.look()
    return watching, Clock


def test_a_rank_that_is_silent_is_lost(watched):
    watching, clock = watched
    for _ in range(7):
        clock.now += 10.0
        watching.look()
    assert [rank for rank, _, _ in watching.lost()] == [0]


def test_a_job_that_slurm_suspended_gets_its_time_again(watched):
    watching, clock = watched
    clock.now += 600.0
    watching.look()
    assert watching.all_alive()
    for _ in range(7):
        clock.now += 10.0
        watching.look()
    assert not watching.all_alive()


def test_a_file_system_that_held_us_up_is_no_silence_of_the_nodes(watched, monkeypatch):
    watching, clock = watched

    def slow(path):
        clock.now += 90.0
        return {"beat": 1, "incarnation": "7.0"}

    clock.now += 1.0
    monkeypatch.setattr(liveness, "read_json", slow)
    watching.look()
    assert watching.all_alive()
