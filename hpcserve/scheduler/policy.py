"""The order in which waiting requests are looked at, and who gives way when memory is short."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hpcserve.scheduler.request import Request

#: How many waiting requests `lpm` compares in one step: matching costs time for each.
LPM_WINDOW = 128
#: A request that later ones overtook so often goes first, whatever its prefix.
MAX_PASSED_OVER = 100


def order_waiting(
    policy: str, waiting: list[Request], num_cached: Callable[[Request], int]
) -> list[Request]:
    """The waiting requests, best first.

    policy: fcfs, lpm (longest cached prefix first, among the LPM_WINDOW oldest) or priority
    (higher first, then older). num_cached: tokens of a request's prefix that are cached now.
    """
    if policy == "fcfs":
        return waiting
    if policy == "priority":
        return sorted(waiting, key=lambda request: (-request.priority, request.arrival_s))
    window = waiting[:LPM_WINDOW]
    starved = [request.num_passed_over < MAX_PASSED_OVER for request in window]
    cached = [num_cached(request) for request in window]
    ranked = sorted(range(len(window)), key=lambda i: (starved[i], -cached[i], i))
    return [window[i] for i in ranked] + waiting[LPM_WINDOW:]


def first_to_retract(policy: str, running: Iterable[Request]) -> Request:
    """Who gives its pages back first: the lowest priority, then the latest admitted.

    running: in order of admission, not empty.
    """
    last, *earlier = reversed(list(running))
    if policy != "priority":
        return last
    for request in earlier:
        if request.priority < last.priority:
            last = request
    return last
