import pytest
import torch

from hpcserve.kernels.metadata import shapes
from hpcserve.ops import metadata

triton_metadata = pytest.importorskip("hpcserve.kernels.metadata.expand_triton")

MAX_LENGTH = 512


def state(random, rows, page_size):
    pages = -(-MAX_LENGTH // page_size)
    page_table = torch.randint(0, 1 << 20, (rows + 3, pages), generator=random).int()
    token_buffer = torch.randint(0, 1 << 17, (rows + 3, MAX_LENGTH + 1), generator=random).int()
    return page_table, token_buffer


def inputs(random, lengths):
    slots = torch.randperm(len(lengths) + 3, generator=random)[: len(lengths)].int()
    slots[[length == shapes.PADDING for length in lengths]] = -1
    computed = torch.randint(0, 200, (len(lengths),), generator=random).int()
    return slots, computed, torch.tensor([abs(length) for length in lengths]).int()


def naive(slots, computed, scheduled, page_table, token_buffer, page_size):
    """Token by token, in Python."""
    ids, positions, slot_mapping, bounds, seq_lens = [], [], [], [0], []
    rows = zip(slots.tolist(), computed.tolist(), scheduled.tolist(), strict=True)
    for slot, start, count in rows:
        bounds.append(bounds[-1] + count)
        seq_lens.append(start + count if slot >= 0 else 0)
        for position in range(start, start + count):
            real = slot >= 0
            ids.append(token_buffer[slot, position].item() if real else 0)
            positions.append(position if real else 0)
            page = page_table[slot, position // page_size].item()
            slot_mapping.append(page * page_size + position % page_size if real else -1)
    kinds = (torch.int32, torch.int64, torch.int64, torch.int32, torch.int32)
    lists = (ids, positions, slot_mapping, bounds, seq_lens)
    return [torch.tensor(values, dtype=kind) for values, kind in zip(lists, kinds, strict=True)]


def assert_same(outputs, expected):
    assert len(outputs) == len(expected)
    for got, want in zip(outputs, expected, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    "run", [metadata.expand, triton_metadata.expand], ids=["reference", "triton"]
)
@pytest.mark.parametrize(("lengths", "page_size"), shapes.SMALL)
def test_expand(random, poisoned, run, lengths, page_size):
    row_inputs = inputs(random, lengths)
    tables = state(random, len(lengths), page_size)
    num_tokens = sum(map(abs, lengths))
    outputs = run(*row_inputs, *tables, page_size, num_tokens)
    assert_same(outputs, naive(*row_inputs, *tables, page_size))


@pytest.mark.parametrize(
    "run", [metadata.expand_decode, triton_metadata.expand_decode], ids=["reference", "triton"]
)
@pytest.mark.parametrize("rows", [1, 5, 256])
def test_expand_decode(random, poisoned, run, rows):
    slots, computed, ones = inputs(
        random, [1, shapes.PADDING, 1, 1, shapes.PADDING][:rows] + [1] * (rows - 5)
    )
    tables = state(random, rows, 16)
    outputs = run(slots, computed, *tables, 16)
    assert_same(outputs, naive(slots, computed, ones, *tables, 16))


def test_page_numbers_past_32_bits_of_slots(poisoned):
    """page * page_size may not fit in int32: slots are computed in 64 bits."""
    table = torch.full((1, 1), 2**30, dtype=torch.int32)
    tokens = torch.zeros(1, 65, dtype=torch.int32)
    one = torch.ones(1, dtype=torch.int32)
    for run in (metadata.expand, triton_metadata.expand):
        assert run(one * 0, one, one, table, tokens, 64, 1)[2].tolist() == [2**36 + 1]


pages_triton = pytest.importorskip("hpcserve.kernels.metadata.pages_triton")


@pytest.mark.parametrize("run", [metadata, pages_triton], ids=["reference", "triton"])
def test_row_pages(random, poisoned, monkeypatch, run):
    monkeypatch.setattr(pages_triton, "BLOCK", 2)
    table = torch.randint(1, 1000, (5, 9), generator=random, dtype=torch.int32)
    slots = torch.tensor([3, -1, 0, 4], dtype=torch.int32)
    lengths = torch.tensor([16 * 5 + 1, 0, 0, 16], dtype=torch.int32)
    rows = run.row_pages(table, slots, lengths, 16)
    assert rows.shape == (4, 9) and rows.dtype == torch.int32
    assert torch.equal(rows[0, :6], table[3, :6])
    assert torch.equal(rows[3, :1], table[4, :1])
    assert rows[1, 0] == 0 and rows[2, 0] == 0


@pytest.mark.parametrize("run", [metadata, pages_triton], ids=["reference", "triton"])
def test_write_pages(random, monkeypatch, run):
    monkeypatch.setattr(pages_triton, "BLOCK", 2)
    table = torch.randint(0, 1000, (4, 6), generator=random, dtype=torch.int32)
    expected = table.clone()
    expected[2, 5], expected[0, 0], expected[2, 1] = 7, 8, 9
    run.write_pages(table, torch.tensor([[2, 0, 2], [5, 0, 1], [7, 8, 9]], dtype=torch.int32))
    assert torch.equal(table, expected)
    run.write_pages(table, torch.empty(3, 0, dtype=torch.int32))
    assert torch.equal(table, expected)
