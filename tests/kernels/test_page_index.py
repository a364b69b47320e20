import pytest
import torch

from hpcserve.kernels.page_index import shapes
from hpcserve.ops import page_index as ops

triton_page_index = pytest.importorskip("hpcserve.kernels.page_index.page_index_triton")

RUNS = [ops, triton_page_index]
IDS = ["reference", "triton"]
#: More rows than the least variant of the kernel looks at.
MANY = ([17 * (row % 5) for row in range(131)], 16, 5)


@pytest.mark.parametrize("run", RUNS, ids=IDS)
@pytest.mark.parametrize(("lengths", "page_size", "max_pages"), [*shapes.SMALL, MANY])
def test_lists_are_the_pages_of_each_row(random, run, lengths, page_size, max_pages):
    """Padding is given one token of its first page; what lies behind a row's pages is never read."""
    rows = len(lengths)
    table = torch.randint(0, 1000, (rows, max_pages + 3), generator=random).int()[:, :max_pages]
    pages = [max(1, -(-length // page_size)) for length in lengths]
    indices = torch.full((sum(pages) + 3,), -7, dtype=torch.int32)
    indptr, last = torch.zeros(rows + 1).int(), torch.zeros(rows).int()
    seq_lens = torch.tensor(lengths, dtype=torch.int32)
    run.page_index(table, seq_lens, page_size, indptr, indices, last)
    assert indptr.tolist() == [sum(pages[:row]) for row in range(rows + 1)]
    assert indices.tolist() == [
        *(int(page) for row, count in enumerate(pages) for page in table[row, :count]),
        *[-7] * 3,
    ]
    assert last.tolist() == [
        max(length, 1) - (count - 1) * page_size
        for length, count in zip(lengths, pages, strict=True)
    ]
