import pytest
import torch

from hpcserve.ops import sampling

token_mask_triton = pytest.importorskip("hpcserve.kernels.sampling.token_mask_triton")


@pytest.mark.parametrize("vocab", [1, 31, 32, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "run", [sampling.apply_token_mask, token_mask_triton.apply_token_mask], ids=["torch", "triton"]
)
def test_forbids_what_has_no_bit(random, run, dtype, vocab):
    words = -(-vocab // 32) + 1
    mask = torch.randint(-(2**31), 2**31, (2, words), generator=random).int()
    wide = torch.randn(4, 2 * vocab, generator=random).to(dtype)
    logits = wide[:, :vocab]  # rows of a wider table
    before = wide.clone()
    out = run(logits, mask, torch.tensor([3, 1]))
    assert out.data_ptr() == logits.data_ptr()
    for row in range(4):
        for token in range(vocab):
            allowed = row not in (3, 1) or (
                int(mask[(3, 1).index(row), token // 32]) >> token % 32 & 1
            )
            assert out[row, token] == (before[row, token] if allowed else -torch.inf)
    assert torch.equal(wide[:, vocab:], before[:, vocab:])


@pytest.mark.parametrize(
    "run", [sampling.apply_token_mask, token_mask_triton.apply_token_mask], ids=["torch", "triton"]
)
def test_no_rows(run):
    logits = torch.ones(2, 40)
    rows = torch.zeros(0, dtype=torch.int64)
    assert bool((run(logits, torch.zeros(0, 2, dtype=torch.int32), rows) == 1).all())
