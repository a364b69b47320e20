"""The kernels of a decode step on a device, in bf16 at real shapes, with poisoned outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hpcserve.kernels.attention import reference as attention_reference
from hpcserve.kernels.gemm import reference as gemm_reference
from hpcserve.ops import metadata, sampling

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

small_m = pytest.importorskip("hpcserve.kernels.gemm.small_m_triton")
decode = pytest.importorskip("hpcserve.kernels.attention.paged_decode_triton")

BF16 = torch.bfloat16
CONFIGS = [(64, 128, 1, 4, 5), (64, 256, 2, 4, 4), (128, 128, 1, 8, 4), (64, 128, 4, 4, 5)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def wrap(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def poisoned_make(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = make(*args, **kwargs)
            return made.fill_(torch.nan if made.is_floating_point() else -(2**30))

        return poisoned_make

    monkeypatch.setattr(torch, "empty", wrap(torch.empty))
    monkeypatch.setattr(torch, "empty_like", wrap(torch.empty_like))
    yield


@pytest.fixture
def random(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(5)


def rand(random: torch.Generator, *size: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(*size, generator=random, device="cuda").to(dtype)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.double(), want.double()
    return float((got - want).norm() / want.norm())


WIDE = small_m.WIDE_CANDIDATES[::4]
CASES = [(rows, one) for rows in (1, 3, 16) for one in CONFIGS]
CASES += [(rows, one) for rows in (17, 50, 64) for one in WIDE]


@pytest.mark.parametrize(("rows", "config"), CASES)
@pytest.mark.parametrize("gates", [False, True])
def test_small_m(random: torch.Generator, rows: int, config: Any, gates: bool) -> None:
    x, weight, bias = rand(random, rows, 4096), rand(random, 6144, 4096) / 64, rand(random, 6144)
    outs = [small_m.linear(x, weight, bias, None, config, gates) for _ in range(5)]
    run = gemm_reference.gated_linear if gates else gemm_reference.linear
    assert error(outs[0], run(x.double(), weight.double(), bias.double())) < 6e-3
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("shape", [(1, 128256), (16, 128256), (256, 151936), (1, 1000)])
def test_argmax(random: torch.Generator, shape: tuple[int, int]) -> None:
    logits = rand(random, *shape)
    best = sampling.argmax(logits)
    assert torch.equal(logits.gather(1, best[:, None]).squeeze(1), logits.amax(-1))
    ties = torch.where(logits == logits.amax(-1, keepdim=True), 1, 0).argmax(-1)
    assert torch.equal(best, ties)
    rows = shape[0]
    slots = torch.arange(rows, device="cuda").int().flip(0)
    slots[rows // 2] = -1
    positions = torch.arange(rows, device="cuda").int() % 7
    buffer = torch.full((rows, 9), -3, dtype=torch.int32, device="cuda")
    outputs = torch.full((4, rows), -5, dtype=torch.int64, device="cuda")
    turn = torch.tensor([2], dtype=torch.int32, device="cuda")
    sampling.store_argmax(logits, buffer, slots, positions, outputs, turn)
    assert torch.equal(outputs[2], best) and bool((outputs[[0, 1, 3]] == -5).all())
    real = slots >= 0
    assert torch.equal(buffer[slots[real].long(), positions[real].long()], best[real].int())
    assert int((buffer != -3).sum()) == int(real.sum())


def test_pages(random: torch.Generator) -> None:
    table = torch.randint(1, 9999, (300, 2049), generator=random, device="cuda", dtype=torch.int32)
    slots = torch.randperm(300, generator=random, device="cuda").int()[:200]
    lens = torch.randint(1, 32768, (200,), generator=random, device="cuda", dtype=torch.int32)
    slots[7], lens[7] = -1, 0
    rows = metadata.row_pages(table, slots, lens, 16)
    for row in range(200):
        pages = -(-int(lens[row]) // 16)
        assert torch.equal(rows[row, :pages], table[int(slots[row]), :pages])
    assert int(rows[7, 0]) == 0
    changes = torch.stack((slots.clamp(min=0), lens // 16, lens))
    changes[0, 7] = 299
    changed = table.clone()
    changed[changes[0].long(), changes[1].long()] = changes[2]
    metadata.write_pages(table, changes)
    assert torch.equal(table, changed)


@pytest.mark.parametrize("group", [1, 4, 8, 20])
@pytest.mark.parametrize("min_split", [64, 256])
def test_paged_decode(random: torch.Generator, group: int, min_split: int) -> None:
    lens = torch.tensor([1, 0, 63, 64, 65, 1000, 5000, 300], device="cuda").int()
    table = torch.randperm(8 * 320, generator=random, device="cuda").int().view(8, 320)
    k, v = (rand(random, 8 * 320, 16, 2, 128) for _ in range(2))
    q = rand(random, 8, 2 * group, 128)
    outs = [decode.paged_decode(q, k, v, table, lens, 0.09, min_split=min_split) for _ in range(3)]
    want = attention_reference.paged_decode(q.float(), k.float(), v.float(), table, lens, 0.09)
    assert error(outs[0], want) < 6e-3
    assert bool((outs[0][1] == 0).all())
    assert all(torch.equal(out, outs[0]) for out in outs)
    alone = decode.paged_decode(q[5:6], k, v, table[5:6], lens[5:6], 0.09, min_split=min_split)
    assert torch.equal(alone[0], outs[0][5])
