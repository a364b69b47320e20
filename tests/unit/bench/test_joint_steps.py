"""A batch dealt out to replicas that step together."""

import pytest

from hpcserve.bench.joint_steps import JointStepMaker
from hpcserve.bench.step_maker import StepMaker
from hpcserve.ipc.messages import WorkerInfo

INFO = WorkerInfo(64, 100, 256, [0], "fake", {})


def maker(replicas: int) -> JointStepMaker:
    one = [StepMaker(INFO, page_size=16, token_budget=32) for _ in range(replicas)]
    return JointStepMaker(one)


@pytest.mark.parametrize(("batch", "shares"), [(1, [1, 0, 0]), (3, [1, 1, 1]), (5, [2, 2, 1])])
def test_rows_are_dealt_out_and_every_replica_steps(batch, shares):
    joint = maker(3)
    steps = list(joint.decode(batch, 20, 4))
    assert [step.step_id for step in steps] == [1, 2, 3, 4]
    for step in steps:
        assert [len(one.slots) for one in step.steps] == shares
        assert all(one.replica_tokens == shares for one in step.steps)
        assert {one.step_id for one in step.steps} == {step.step_id}


def test_prompts_of_unequal_numbers_end_together():
    """Two prompts of 40 take three steps of 32 tokens, one takes two: the third is the first's."""
    steps = list(maker(2).prefill(3, 40, 0))
    assert [step.steps[0].replica_tokens for step in steps] == [[32, 32], [32, 8], [16, 0]]
