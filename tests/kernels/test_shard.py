"""The best of every part of the vocabulary, and of those the best: the token that the whole gives."""

import pytest
import torch

from hpcserve.kernels.sampling import reference

triton_shard = pytest.importorskip("hpcserve.kernels.sampling.shard_triton")

#: (vocabulary, parts); the last part of some is short, of one empty.
CASES = [(64, 2), (131, 4), (9, 8), (10000, 2), (50, 1)]
KINDS = ["greedy", "drawn", "mixed"]


def inputs(random: torch.Generator, vocab: int, kind: str, rows: int = 5):
    logits = (torch.randn(rows, vocab, generator=random) * 3).to(torch.bfloat16)
    # Ties within a part and across them.
    logits[0, :: max(1, vocab // 6)] = 20.0
    temperature = torch.full((rows,), 0.0 if kind == "greedy" else 1.7)
    if kind == "mixed":
        temperature[::2] = 0.0
    seeds = torch.randint(-(2**62), 2**62, (rows,), generator=random)
    positions = torch.randint(0, 4000, (rows,), generator=random)
    return logits, temperature, seeds, positions


def pairs_of(module, logits, parts, draw):
    """As the ranks make them: each has ceil(vocab / parts) columns, padded with what is no logit."""
    rows, vocab = logits.shape
    local = -(-vocab // parts)
    padded = torch.full((rows, local * parts), 1e4, dtype=logits.dtype)
    padded[:, :vocab] = logits
    return torch.stack(
        [
            module.best_of_part(
                padded[:, part * local : (part + 1) * local],
                part * local,
                min(local, vocab - part * local),
                draw,
            )
            for part in range(parts)
        ]
    )


def whole(logits, temperature, seeds, positions):
    off = torch.full((len(logits),), -1, dtype=torch.int32)
    one, zero = torch.ones(len(logits)), torch.zeros(len(logits))
    return reference.sample(logits, temperature, off, one, zero, seeds, positions)


@pytest.mark.parametrize("module", [reference, triton_shard], ids=["reference", "kernel"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("vocab", "parts"), CASES)
def test_best_of_parts_is_best_of_all(random, poisoned, module, kind, vocab, parts):
    logits, *draw = inputs(random, vocab, kind)
    pairs = pairs_of(module, logits, parts, None if kind == "greedy" else tuple(draw))
    assert module.choose(pairs).tolist() == whole(logits, *draw).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_makes_the_same_pairs(random, poisoned, kind):
    logits, *draw = inputs(random, 9000, kind)
    draw = None if kind == "greedy" else tuple(draw)
    found = triton_shard.best_of_part(logits[:, :8000], 77, 8000, draw)
    expected = reference.best_of_part(logits[:, :8000], 77, 8000, draw)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[:, 1], expected[:, 1])


def test_drawn_tokens_spread_like_their_probabilities(random):
    """The exchange does not favour a part: shares of 4,000 draws over four parts of unequal mass."""
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5, 0.0, 1.5, 0.0]).repeat(4000, 1)
    draw = (torch.ones(4000), torch.full((4000,), 3), torch.arange(4000))
    chosen = reference.choose(pairs_of(reference, logits, 4, draw))
    shares = torch.bincount(chosen, minlength=8) / 4000
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize("module", [reference, triton_shard], ids=["reference", "kernel"])
def test_the_choice_goes_where_the_next_step_reads_it(random, module):
    logits, *_ = inputs(random, 64, "greedy", rows=3)
    pairs = pairs_of(module, logits, 2, None)
    buffer = torch.zeros(4, 9, dtype=torch.int32)
    outputs = torch.zeros(4, 3, dtype=torch.int64)
    slots = torch.tensor([2, -1, 0], dtype=torch.int32)
    positions = torch.tensor([5, 1, 7], dtype=torch.int32)
    turn = torch.tensor([3], dtype=torch.int32)
    module.store_choice(pairs, buffer, slots, positions, outputs, turn)
    tokens = logits.argmax(-1)
    assert outputs[3].tolist() == tokens.tolist() and outputs[:3].eq(0).all()
    assert buffer[2, 5] == tokens[0] and buffer[0, 7] == tokens[2]
    assert buffer.ne(0).sum() == (tokens[[0, 2]] != 0).sum()


@pytest.mark.parametrize("kind", ["greedy", "drawn"])
def test_nan_is_never_chosen(random, kind):
    """Like a whole row's: a rank's broken logits win over no number of another rank."""
    logits, *draw = inputs(random, 9000, kind, rows=4)
    logits[0, ::3] = torch.nan
    logits[1, :4500] = torch.nan
    logits[2] = torch.nan
    without_nan = logits.nan_to_num(nan=-torch.inf)
    draw = None if kind == "greedy" else tuple(draw)
    pairs = pairs_of(triton_shard, logits, 2, draw)
    assert not pairs.isnan().any()
    chosen = triton_shard.choose(pairs)
    expected = reference.choose(pairs_of(reference, without_nan, 2, draw))
    assert chosen.tolist() == expected.tolist()
    assert chosen[2] == 0
