from __future__ import annotations

import numpy as np
import pytest

from hpcserve.engine import router
from hpcserve.engine.router import BLOCK_TOKENS, PrefixRouter


def prompt(*parts: tuple[int, int]) -> np.ndarray:
    """Blocks of (first token, how many blocks)."""
    pieces = [np.arange(count * BLOCK_TOKENS, dtype=np.int32) + first for first, count in parts]
    return np.concatenate(pieces)


def test_a_prefix_goes_where_it_was():
    route = PrefixRouter()
    homes = {
        first: route.choose(prompt((first, 2)), {0: 0, 1: 0}) for first in range(0, 8000, 1000)
    }
    assert set(homes.values()) == {0, 1}
    for first, home in homes.items():
        assert route.choose(prompt((first, 2), (9999, 3)), {0: 5, 1: 5}) == home


def test_the_longest_prefix_wins():
    route = PrefixRouter()
    assert route.choose(prompt((0, 1)), {0: 0, 1: 9}) == 0
    assert route.choose(prompt((0, 1), (500, 1)), {1: 0}) == 1
    # That call had one candidate, so nothing was learnt from it.
    route.choose(prompt((0, 1), (500, 1), (900, 1)), {1: 0, 2: 99})
    assert route.choose(prompt((0, 1), (500, 1)), {0: 0, 1: 0, 2: 0}) == 1


def test_a_busy_replica_is_spared():
    route = PrefixRouter()
    ids = prompt((0, 4))
    assert route.choose(ids, {0: 0, 1: 1}) == 0
    assert route.choose(ids, {0: 10, 1: 0}) == 0
    assert route.choose(ids, {0: 40, 1: 2}) == 1
    assert route.choose(ids, {0: 2, 1: 10}) == 1


def test_the_idlest_gets_what_nobody_knows():
    route = PrefixRouter()
    assert [route.choose(prompt((n, 1)), {0: 3, 1: 0, 2: 3}) for n in range(0, 900, 300)] == [1] * 3
    even = [route.choose(np.zeros(3, np.int32), {0: 1, 1: 1, 2: 1}) for _ in range(6)]
    assert sorted(even) == [0, 0, 1, 1, 2, 2]


def test_who_is_gone_gets_nothing_and_is_forgotten():
    route = PrefixRouter()
    ids = prompt((0, 4))
    home = route.choose(ids, {0: 0, 1: 0})
    other = 1 - home
    assert route.choose(ids, {other: 7, 2: 0}) == 2
    again = PrefixRouter()
    assert again.choose(ids, {0: 0, 1: 5}) == 0
    again.forget(0)
    assert again.choose(ids, {0: 5, 1: 0}) == 1


def test_the_oldest_prefixes_are_dropped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(router, "MAX_ENTRIES", 4)
    route = PrefixRouter()
    assert route.choose(prompt((0, 2)), {0: 0, 1: 5}) == 0
    route.choose(prompt((7000, 4)), {0: 0, 1: 5})
    assert route.choose(prompt((0, 2)), {0: 5, 1: 0}) == 1
