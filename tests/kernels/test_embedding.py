import pytest
import torch

from hpcserve.kernels.embedding import shapes
from hpcserve.ops import embedding

triton_embedding = pytest.importorskip("hpcserve.kernels.embedding.embed_triton")


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", shapes.SMALL)
@pytest.mark.parametrize(
    "run", [embedding.embed, triton_embedding.embed], ids=["reference", "triton"]
)
def test_embed(random, poisoned, run, shape, dtype, ids_dtype):
    tokens, vocab, hidden = shape
    table = torch.randn(vocab, hidden, generator=random).to(dtype)
    ids = torch.randint(0, vocab, (tokens,), generator=random).to(ids_dtype)
    ids[-1] = vocab - 1
    out = run(ids, table)
    assert torch.equal(out, torch.stack([table[i] for i in ids.tolist()]))


def test_kernel_takes_strided_ids_and_tables(random, poisoned):
    table = torch.randn(20, 64, generator=random)[::2, :40]
    ids = torch.arange(8).view(2, 4).t()
    assert torch.equal(triton_embedding.embed(ids, table), table[ids])
