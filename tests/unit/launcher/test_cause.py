from __future__ import annotations

import pytest

from hpcserve.launcher import cause
from hpcserve.launcher.continuation import decide


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (
            ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"],
            cause.OUT_OF_MEMORY,
        ),
        (["slurmstepd: error: Detected 1 oom_kill event in StepId=5.0"], cause.OUT_OF_MEMORY),
        (
            ["slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT X DUE TO TIME LIMIT ***"],
            cause.TIME_LIMIT,
        ),
        (
            ["slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT X DUE TO PREEMPTION ***"],
            cause.PREEMPTED,
        ),
        (["srun: error: Node failure on n2"], cause.NODE_FAILURE),
        (["[rank3]: Watchdog caught collective operation timeout: WorkNCCL"], cause.NCCL_TIMEOUT),
        (["RuntimeError: NCCL error: ncclRemoteError: remote process exited"], cause.NCCL_TIMEOUT),
        (
            ["RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer"],
            cause.NCCL_TIMEOUT,
        ),
        (
            [
                "I like memory",
                "ValueError: shard 3 is corrupt",
                "srun: error: n1: task 0: Exited with exit code 1",
            ],
            cause.CRASHED,
        ),
    ],
)
def test_logs_tell_the_cause(lines, kind):
    assert cause.from_logs(lines).kind == kind


def test_last_error_line_is_given_and_slurms_own_noise_is_not():
    lines = [
        "hpcserve.errors.WeightsError: tensor a.b is missing",
        "bye",
        "srun: error: n1: task 0: Exited with exit code 2",
        "srun: launch/slurm: _step_signal: Terminating StepId=6.0",
        "slurmstepd-n1: error: *** STEP 6.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***",
    ]
    assert cause.from_logs(lines).detail == "hpcserve.errors.WeightsError: tensor a.b is missing"


def test_harmless_words_on_stderr_are_no_cause():
    found = cause.from_logs(["libfabric:warn: unable to open device", "fine"], exit_code=3)
    assert found == cause.Cause(cause.CRASHED, "exit code 3; last line: fine")


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("TIMEOUT", cause.TIME_LIMIT),
        ("NODE_FAIL", cause.NODE_FAILURE),
        ("OUT_OF_MEMORY", cause.OUT_OF_MEMORY),
        ("PREEMPTED", cause.PREEMPTED),
        ("CANCELLED by 1000", cause.CANCELLED),
    ],
)
def test_slurms_state_tells_the_cause(state, kind):
    found = cause.from_slurm(state)
    assert found is not None
    assert found.kind == kind


def test_failed_says_nothing():
    assert cause.from_slurm("FAILED") is None


def test_tail_starts_where_this_run_began(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"CUDA out of memory\n" + "hé".encode()[:2] + b"\nlast\n")
    assert cause.tail(log)[0] == "CUDA out of memory"
    assert cause.tail(log, start=19)[-1] == "last"
    assert "CUDA out of memory" not in cause.tail(log, start=19)
    assert cause.tail(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("policy", "kind", "restarts", "progress", "goes_on"),
    [
        ("requeue", cause.TIME_LIMIT, 0, True, True),
        ("chain", cause.PREEMPTED, 2, True, True),
        ("requeue", cause.TIME_LIMIT, 3, True, False),  # the cap
        ("requeue", cause.TIME_LIMIT, 0, False, False),  # no progress
        ("requeue", cause.NODE_FAILURE, 0, False, True),  # not its fault
        ("requeue", cause.CANCELLED, 0, True, False),
        ("requeue", cause.OUT_OF_MEMORY, 0, True, False),
        ("requeue", cause.CRASHED, 0, True, False),
        ("none", cause.TIME_LIMIT, 0, True, False),
    ],
)
def test_who_goes_on(policy, kind, restarts, progress, goes_on):
    decision = decide(policy, kind, restarts=restarts, max_restarts=3, progress=progress)
    assert decision.go_on is goes_on
    assert decision.reason
