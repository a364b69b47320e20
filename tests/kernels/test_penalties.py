import pytest
import torch

from hpcserve.ops import sampling

triton_penalties = pytest.importorskip("hpcserve.kernels.sampling.penalties_triton")

IDS = ["reference", "triton"]
VOCAB = 2500


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "run", [sampling.apply_penalties, triton_penalties.apply_penalties], ids=IDS
)
def test_penalties(random, run, dtype):
    logits = torch.randn(3, VOCAB, generator=random).to(dtype)
    counts = torch.randint(-3, 4, (3, VOCAB), generator=random).clamp(min=0).int()
    prompt = torch.rand(3, VOCAB, generator=random) < 0.3
    # Columns of one table, as the engine keeps them: not contiguous.
    strengths = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.0, 1.0], [-1.0, 0.7, 1.3]])
    frequency, presence, repetition = strengths.unbind(1)
    expected = logits.double()
    for row in range(3):
        for token in range(VOCAB):
            count, x = counts[row, token].item(), expected[row, token].item()
            if count or prompt[row, token]:
                x = x / repetition[row].item() if x > 0 else x * repetition[row].item()
            x -= frequency[row].item() * count + presence[row].item() * (count > 0)
            expected[row, token] = x
    untouched = logits[1].clone()
    out = run(logits, counts, prompt, frequency, presence, repetition)
    assert out.data_ptr() == logits.data_ptr() and out.dtype == dtype
    assert torch.equal(out[1], untouched)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "run", [sampling.apply_logit_bias, triton_penalties.apply_logit_bias], ids=IDS
)
def test_logit_bias(random, run):
    logits = torch.randn(4, 50, generator=random)
    where = torch.tensor([[0, 49], [0, 3], [3, 0], [-1, 7], [2, 11]], dtype=torch.int32)
    rows, ids = where.unbind(1)
    bias = torch.tensor([1.5, -100.0, -torch.inf, 9.0, 0.25])
    expected = logits.clone()
    for row, token, value in ((0, 49, 1.5), (0, 3, -100.0), (3, 0, -torch.inf), (2, 11, 0.25)):
        expected[row, token] += value
    assert torch.equal(run(logits, rows, ids, bias), expected)
    assert torch.equal(logits, expected)
    empty = torch.empty(0, dtype=torch.int32)
    assert torch.equal(run(logits, empty, empty, torch.empty(0)), expected)


def test_top_logprobs(random):
    logits = torch.randn(3, 30, generator=random).bfloat16()
    chosen = torch.tensor([4, 0, 29])
    logprob, ids, values = sampling.top_logprobs(logits, chosen, 5)
    probs = logits.double().exp()
    expected = (probs / probs.sum(-1, keepdim=True)).log()
    torch.testing.assert_close(logprob.double(), expected[range(3), chosen], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.double(), expected.gather(1, ids), rtol=1e-5, atol=1e-5)
    assert torch.equal(values, values.sort(descending=True).values)
    assert (values[:, -1:] >= expected.scatter(1, ids, -torch.inf) - 1e-5).all()
    assert logprob.dtype == values.dtype == torch.float32
    assert sampling.top_logprobs(logits, chosen, 0)[1].shape == (3, 0)
