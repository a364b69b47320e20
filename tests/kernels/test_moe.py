import json

import pytest
import torch

from hpcserve.kernels.moe import reference, shapes
from hpcserve.ops import moe

align_triton = pytest.importorskip("hpcserve.kernels.moe.align_triton")
from hpcserve.kernels.moe import grouped_gemm_triton, pack_triton, route_triton, tuned  # noqa: E402
from hpcserve.kernels.moe.tuned import Tiles  # noqa: E402

TILE = Tiles((16, 32, 32, 4, 2), (16, 64, 16, 4, 2))


def make(random, tokens, hidden, size, experts, k, dtype=torch.float32):
    def normal(*shape):
        return torch.randn(shape, generator=random).to(dtype)

    x = normal(tokens, hidden)
    gate_up = normal(experts, 2 * size, hidden) / hidden**0.5
    down = normal(experts, hidden, size) / size**0.5
    weights, ids = reference.route(normal(tokens, experts), k, True)
    return x, gate_up, down, weights, ids


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 4, 2), (3, 60, 4), (5, 128, 8)])
def test_route(random, poisoned, tokens, experts, k, renormalize):
    logits = torch.randn(tokens, experts, generator=random)
    logits[0, :2] = logits[0].max() + 1.0  # equal ones: the lower id is first
    weights, ids = route_triton.route(logits, k, renormalize)
    expected_weights, expected_ids = moe.route(logits, k, renormalize)
    assert torch.equal(ids, expected_ids) and ids[0, 0] == 0
    torch.testing.assert_close(weights, expected_weights)
    if renormalize:
        torch.testing.assert_close(weights.sum(1), torch.ones(tokens))


@pytest.mark.parametrize(("first", "held"), [(0, 6), (2, 3), (4, 2)])
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_align(random, poisoned, tokens, first, held):
    ids = torch.randint(0, 5, (tokens, 2), generator=random).int()  # nobody takes expert 5
    pairs, experts = align_triton.align(ids, 16, held, first)
    blocks = pairs.view(-1, 16)
    flat = ids.flatten()
    seen = []
    for block, expert in zip(blocks, experts.tolist(), strict=True):
        if expert < 0:
            continue
        real = block[block < flat.numel()]
        assert len(real) and (flat[real.long()] == first + expert).all()
        seen += real.tolist()
    inside = (flat >= first) & (flat < first + held)
    assert sorted(seen) == inside.nonzero().flatten().tolist()


@pytest.mark.parametrize(("tokens", "hidden", "size", "experts", "k"), shapes.SMALL)
def test_experts(random, poisoned, tokens, hidden, size, experts, k):
    x, gate_up, down, weights, ids = make(random, tokens, hidden, size, experts, k)
    expected = moe.experts(x, gate_up, down, weights, ids, 0)
    found = grouped_gemm_triton.experts(x, gate_up, down, weights, ids, 0, TILE)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_parts_of_the_experts_add_up(random, poisoned):
    x, gate_up, down, weights, ids = make(random, 6, 64, 32, 8, 2)
    ids = ids % 6  # the last two, a part of their own, get no token
    whole = reference.experts(x, gate_up, down, weights, ids, 0)
    parts = [
        grouped_gemm_triton.experts(
            x, gate_up[first : first + 2], down[first : first + 2], weights, ids, first, TILE
        )
        for first in range(0, 8, 2)
    ]
    assert not parts[-1].any()
    torch.testing.assert_close(sum(parts), whole, rtol=2e-5, atol=2e-5)


def test_no_token(random):
    x, gate_up, down, weights, ids = make(random, 0, 64, 32, 4, 2)
    assert grouped_gemm_triton.experts(x, gate_up, down, weights, ids, 0).shape == (0, 64)
    assert moe.experts(x, gate_up, down, weights, ids, 0).shape == (0, 64)


def test_tiles_by_rule_and_by_measurement(tmp_path):
    by_rule = tuned.tiles(64, 8, 4096, 14336)
    assert by_rule == (tuned.BY_ROWS[0][1],) * 2
    assert tuned.tiles(1 << 16, 8, 4096, 14336).down == tuned.BY_ROWS[-1][1]
    first, second = tuned.CANDIDATES[0], tuned.CANDIDATES[1]
    path = tmp_path / "tuned.json"
    path.write_text(
        json.dumps({"GPU": [[[8, 64, 32], [[16, first, second], [64, second, second]]]]})
    )
    table = tuned.table_of("GPU", path)
    assert table == {(8, 64, 32): [(16, Tiles(first, second)), (64, Tiles(second, second))]}
    assert tuned.table_of("another", path) == {}


def test_every_tile_of_a_pair_sorts_alike():
    """The pairs are sorted once for both products."""
    name = "NVIDIA H200"
    for measured in tuned.table_of(name).values():
        assert [most for most, _ in measured] == sorted(most for most, _ in measured)
        assert all(found.gate_up[0] == found.down[0] for _, found in measured)


@pytest.mark.parametrize("tokens", [1, 3])
def test_ranks_without_a_token_add_zeros(random, poisoned, tokens):
    """All pairs go to the first two of four ranks."""
    x, gate_up, down, weights, ids = make(random, tokens, 64, 32, 8, 2)
    ids = ids % 4
    for first in (4, 6):
        held = slice(first, first + 2)
        out = grouped_gemm_triton.experts(x, gate_up[held], down[held], weights, ids, first, TILE)
        assert out.shape == x.shape and not out.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "capacity", "copies", "hidden", "k"),
    [(3, 5, 2, 20, 3), (0, 2, 4, 64, 8), (4, 4, 1, 2048, 8), (1, 1, 3, 8, 1), (0, 0, 2, 8, 2)],
)
def test_pack(random, poisoned, tokens, capacity, copies, hidden, k, dtype):
    x = torch.randn(tokens, 2 * hidden, generator=random).to(dtype)[:, ::2]
    weights = torch.rand(tokens, k, generator=random)
    ids = torch.randint(0, 128, (tokens, k), generator=random).int()
    found = pack_triton.pack(x, weights, ids, capacity, copies)
    expected = moe.pack(x, weights, ids, capacity, copies)
    assert found.shape == expected.shape and found.shape[2] % 16 == 0
    for one in (*found, *expected):
        got = moe.unpack(one, hidden, k, dtype)
        for part, wanted in zip(got, (x, weights, ids), strict=True):
            assert torch.equal(part[:tokens], wanted)
        assert (got[2][tokens:] == -1).all() and not got[0][tokens:].any()


def test_experts_take_packed_tokens(random, poisoned):
    """Views of rows of bytes, some of them empty: no expert is run for these."""
    x, gate_up, down, weights, ids = make(random, 5, 64, 32, 8, 2)
    rows = pack_triton.pack(x, weights, ids, 7, 1)[0]
    packed, its_weights, its_ids = moe.unpack(rows, 64, 2, x.dtype)
    out = grouped_gemm_triton.experts(packed, gate_up, down, its_weights, its_ids, 0, TILE)
    wanted = reference.experts(x, gate_up, down, weights, ids, 0)
    torch.testing.assert_close(out[:5], wanted, rtol=2e-5, atol=2e-5)
    assert not out[5:].any()
