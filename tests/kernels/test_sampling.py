import itertools
import math

import pytest
import torch

from hpcserve.kernels.sampling import reference, shapes
from hpcserve.ops import sampling

triton_sample = pytest.importorskip("hpcserve.kernels.sampling.sample_triton")

RUNS = [sampling.sample, triton_sample.sample]
IDS = ["reference", "triton"]
# Upper quantiles of chi-square at 1e-4 by degrees of freedom: seeds are fixed, this never flakes.
CHI_SQUARE = {1: 15.14, 2: 18.42, 3: 21.11, 7: 29.88}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, a bracket that outgrows the scratch row, and then one that fits."""
    monkeypatch.setattr(triton_sample, "BLOCK", 256)
    monkeypatch.setattr(triton_sample, "SCAN_BLOCK", 256)
    monkeypatch.setattr(triton_sample, "CAPACITY", 32)


def batch(logits, *, temperature=1.0, top_k=-1, top_p=1.0, min_p=0.0, seeds=None, positions=None):
    """Arguments of `sample`; scalars hold for every row."""
    rows = logits.shape[0]

    def column(value, dtype=torch.float32):
        value = torch.as_tensor(value, dtype=dtype)
        return value.expand(rows).contiguous()

    return (
        logits,
        column(temperature),
        column(top_k, torch.int32),
        column(top_p),
        column(min_p),
        column(0, torch.int64) if seeds is None else seeds,
        torch.arange(rows) if positions is None else positions,
    )


def allowed(row, temperature, top_k, top_p, min_p):
    """The ids that the filters keep, by the definitions and in float64, token by token."""
    scaled = row.double() / temperature
    order = scaled.argsort(descending=True).tolist()
    kept = order
    if 0 < top_k < len(order):
        kept = [i for i in order if scaled[i] >= scaled[order[top_k - 1]]]
    probs = torch.softmax(scaled[kept], 0).tolist()
    if top_p < 1.0:
        size = 1 + sum(1 for mass in itertools.accumulate(probs[:-1]) if mass < top_p)
        kept = [i for i in kept if scaled[i] >= scaled[kept[size - 1]]]
    limit = scaled.max() + (math.log(min_p) if min_p > 0 else -math.inf)
    return {i for i in kept if scaled[i] >= limit}


@pytest.mark.parametrize("case", shapes.SMALL, ids=lambda case: case.name)
def test_kernel_equals_reference(poisoned, case):
    # bfloat16 where logits spread: many ties, some at the thresholds.
    args = case.make("cpu", torch.bfloat16 if case.spread > 1 else torch.float32)
    assert torch.equal(triton_sample.sample(*args), reference.sample(*args))


@pytest.mark.parametrize("run", RUNS, ids=IDS)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (0.7, 5, 1.0, 0.0),
        (1.5, -1, 0.6, 0.0),
        (1.0, 0, 1.0, 0.2),
        (0.9, 12, 0.8, 0.05),
        (1, 1, 1, 0),
    ],
)
def test_only_allowed_tokens_and_each_of_them(random, run, temperature, top_k, top_p, min_p):
    row = torch.randn(40, generator=random)
    rows = 3000 if run is sampling.sample else 4
    tokens = run(
        *batch(row.repeat(rows, 1), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    )
    want = allowed(row, temperature, top_k, top_p, min_p)
    got = set(tokens.tolist())
    assert got <= want
    if rows == 3000:
        assert got == want


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_greedy_takes_the_first_of_equals(run):
    logits = torch.zeros(3, 300)
    logits[0, [17, 150, 299]] = 2.0
    logits[1, 299] = 1.0
    assert run(*batch(logits, temperature=0.0)).tolist() == [17, 299, 0]


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"top_p": 0.3}, {"top_k": 3, "top_p": 0.35}])
def test_ties_with_the_last_one_kept_are_kept(filters):
    """Four tokens share the second place: top-k 2 and a nucleus that ends there keep all four."""
    logits = torch.full((60, 200), -5.0)
    logits[:, 3] = 2.0
    logits[:, [50, 90, 120, 199]] = 1.9
    args = batch(logits, **filters)
    tokens = sampling.sample(*args)
    assert set(tokens.tolist()) == {3, 50, 90, 120, 199}
    first = triton_sample.sample(*(tensor[:2].contiguous() for tensor in args))
    assert torch.equal(first, tokens[:2])


@pytest.mark.parametrize("kind", ["zeros of both signs", "coarse", "exponential"])
def test_kernel_on_hard_values(random, monkeypatch, kind):
    """Values that all tie, that tie in groups around zero, and that crowd at one end."""
    monkeypatch.setattr(triton_sample, "CAPACITY", 8)
    logits = torch.randn(3, 150, generator=random)
    if kind == "zeros of both signs":
        logits = torch.where(logits > 0, 0.0, -0.0)
    elif kind == "coarse":
        logits = (2 * logits).round() / 2
    else:
        logits = -(8 * logits.abs()).exp()
    args = batch(
        logits,
        temperature=0.6,
        top_k=torch.tensor([60, -1, 140]),
        top_p=torch.tensor([1.0, 0.6, 0.9]),
        seeds=torch.arange(3),
    )
    assert torch.equal(triton_sample.sample(*args), reference.sample(*args))


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_forbidden_tokens_and_whole_blocks_of_them(random, run):
    logits = torch.full((6, 300), -torch.inf)
    logits[:, 140:150] = torch.randn(10, generator=random)
    args = batch(
        logits,
        temperature=torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 2.0]),
        top_k=torch.tensor([0, 0, 3, 0, 0, 250]),
        top_p=torch.tensor([1.0, 1.0, 1.0, 0.8, 1.0, 0.999]),
        min_p=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.3, 0.0]),
    )
    tokens = run(*args)
    assert ((tokens >= 140) & (tokens < 150)).all()


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_a_row_does_not_depend_on_the_others(random, run):
    """Greedy, plain and filtered rows together give what each gives alone."""
    logits = torch.randn(5, 260, generator=random)
    args = batch(
        logits,
        temperature=torch.tensor([0.0, 0.9, 0.7, 1.2, 1.0]),
        top_k=torch.tensor([-1, -1, 10, -1, 300]),
        top_p=torch.tensor([1.0, 1.0, 1.0, 0.7, 1.0]),
        min_p=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.1]),
        seeds=torch.tensor([5, 6, 7, 8, 9]),
        positions=torch.tensor([10, 11, 12, 13, 14]),
    )
    together = run(*args)
    alone = [run(*(tensor[row : row + 1] for tensor in args)) for row in range(5)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_strided_logits_and_parameters(random, run):
    wide = torch.randn(6, 400, generator=random)
    args = batch(
        wide[::2, :200],
        temperature=torch.tensor([1.0, 0.0, 0.5]),
        top_k=torch.tensor([0, 0, 7]),
    )
    expected = run(args[0].contiguous(), *args[1:])
    table = torch.stack(args[1:5:2], dim=1)
    strided = (args[0], table[:, 0], args[2], table[:, 1], *args[4:])
    assert torch.equal(run(*strided), expected)


def chi_square(tokens, probs):
    counts = torch.bincount(tokens, minlength=len(probs)).double()
    expected = probs.double() * len(tokens)
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("vary", ["seed", "position"])
def test_reference_samples_the_softmax(vary):
    row = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0, 1.5, -0.5, 0.2])
    rows = 40_000
    changing, fixed = torch.arange(rows) + 1000, torch.full((rows,), 99)
    seeds, positions = (changing, fixed) if vary == "seed" else (fixed, changing)
    args = batch(row.repeat(rows, 1), temperature=0.8, seeds=seeds, positions=positions)
    assert chi_square(reference.sample(*args), torch.softmax(row / 0.8, 0)) < CHI_SQUARE[7]
    args = batch(row.repeat(rows, 1), top_k=4, min_p=0.3, seeds=seeds, positions=positions)
    tokens = reference.sample(*args)
    kept = sorted(allowed(row, 1.0, 4, 1.0, 0.3))
    rank = torch.searchsorted(torch.tensor(kept), tokens)
    assert torch.tensor(kept)[rank].equal(tokens)
    assert chi_square(rank, torch.softmax(row[kept], 0)) < CHI_SQUARE[len(kept) - 1]


def test_no_rows():
    assert triton_sample.sample(*batch(torch.empty(0, 10))).shape == (0,)


@pytest.mark.parametrize(
    "filters",
    [
        {"temperature": 0.0},
        {},
        {"top_k": 2},
        {"top_p": 0.5},
        {"min_p": 0.1},
        {"top_k": 2, "top_p": 0.5},
    ],
    ids=str,
)
def test_nan_is_never_chosen(filters):
    """Whatever a row that overflowed holds, it gets a token of the vocabulary."""
    logits = torch.full((4, 300), torch.nan)
    logits[0, 299] = -3.0
    logits[1, [7, 200]] = torch.tensor([1.0, 90.0])
    logits[3] = -torch.inf
    assert triton_sample.sample(*batch(logits, **filters)).tolist() == [299, 200, 0, 0]
