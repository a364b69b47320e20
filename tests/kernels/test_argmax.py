import pytest
import torch

from hpcserve.ops import sampling

triton_argmax = pytest.importorskip("hpcserve.kernels.sampling.argmax_triton")

RUNS = [sampling, triton_argmax]
IDS = ["reference", "triton"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(triton_argmax, "BLOCK", 128)


@pytest.mark.parametrize("run", RUNS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_argmax(random, poisoned, run, dtype):
    wide = torch.randn(4, 700, generator=random).to(dtype)
    for logits in (wide[:, :500], wide[:1, 100:401], wide[:0]):
        tokens = run.argmax(logits)
        assert tokens.dtype == torch.int64
        assert torch.equal(tokens, logits.float().argmax(-1))


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_the_least_id_wins_and_forbidden_blocks_lose(run):
    logits = torch.full((3, 400), -torch.inf)
    logits[0, [130, 131, 399]] = 2.0
    logits[1, 399] = -1e30
    logits[2, [5, 200]] = 0.0
    assert run.argmax(logits).tolist() == [130, 399, 5]


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_store_writes_its_turn_and_the_real_rows(random, run):
    logits = torch.randn(3, 300, generator=random)
    best = logits.argmax(-1)
    buffer = torch.full((4, 6), -7, dtype=torch.int32)
    outputs = torch.full((2, 3), -9, dtype=torch.int64)
    packed = torch.tensor([2, -1, 0, 5, 3, 1, 1], dtype=torch.int32)
    slots, positions, turn = packed.split([3, 3, 1])
    run.store_argmax(logits, buffer, slots, positions, outputs, turn)
    assert torch.equal(outputs[1], best)
    assert (outputs[0] == -9).all()
    expected = torch.full_like(buffer, -7)
    expected[2, 5], expected[0, 1] = int(best[0]), int(best[2])
    assert torch.equal(buffer, expected)


def test_nan_is_never_chosen():
    """A row that overflowed must not name a token beyond the vocabulary: its embedding is read."""
    logits = torch.full((3, 300), torch.nan)
    logits[0, 299] = -3.0
    logits[1, [7, 200]] = torch.tensor([1.0, 2.0])
    assert triton_argmax.argmax(logits).tolist() == [299, 200, 0]
