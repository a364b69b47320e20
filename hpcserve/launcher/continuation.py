"""Whether a job that ended goes on, and how: the decision here, the deed in `followup.py`."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.launcher import cause

#: Ends that say nothing against the job itself.
_FROM_OUTSIDE = (cause.TIME_LIMIT, cause.PREEMPTED, cause.NODE_FAILURE)


@dataclass(frozen=True)
class Decision:
    """go_on, and the reason in words for the log."""

    go_on: bool
    reason: str


def decide(policy: str, kind: str, *, restarts: int, max_restarts: int, progress: bool) -> Decision:
    """policy: requeue, chain or none.  kind: the cause's word.  restarts: so far, over all runs.

    progress: since it last started, a server became ready, or a batch run finished rows.
    A job that is ended on purpose, or by its own fault, is never started again. One that made no
    progress is not either, unless a node failed under it: else it would come back for ever.
    """
    if policy == "none":
        return Decision(False, "--continue-with none")
    if kind not in _FROM_OUTSIDE:
        return Decision(False, f"a job that ended by {kind} is not started again")
    if restarts >= max_restarts:
        return Decision(
            False, f"restarted {restarts} times already (--max-restarts {max_restarts})"
        )
    if not progress and kind != cause.NODE_FAILURE:
        return Decision(False, "it made no progress since its last start")
    return Decision(True, f"{policy} after {kind} (restart {restarts + 1} of {max_restarts})")
