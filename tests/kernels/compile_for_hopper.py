"""Compile every kernel for sm_90 without a GPU: the interpreter accepts what the compiler refuses.

A program of its own, since the interpreter must be off; prints one JSON object a kernel.
"""

import json
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

BF16 = torch.bfloat16
LAUNCH = JITFunction.run


def compile_only(self, *args, grid, warmup, **kwargs):
    """Stands in for the launch of a kernel."""
    compiled = LAUNCH(self, *args, grid=grid, warmup=True, **kwargs)
    assembly = compiled.asm["ptx"]
    facts = {
        "kernel": self.fn.__name__,
        "variant": compiled.hash,
        "warps": compiled.metadata.num_warps,
        "shared": compiled.metadata.shared,
        **resources(compiled.asm["cubin"]),
        "tensor_cores": "wgmma.mma_async" in assembly or "mma.sync" in assembly,
        "asynchronous_copies": "cp.async" in assembly,
        # Words to other GPUs, and readings of theirs.
        **{
            order: sum(
                "sys" in word and order in word for word in re.findall("atom[.a-z]+", assembly)
            )
            for order in ("release", "acquire")
        },
    }
    print(json.dumps(facts), flush=True)
    return compiled


@cache
def resources(cubin):
    """{registers, stack}: of a thread; a stack is where registers are spilled to."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
    return {"registers": int(registers), "stack": int(stack)}


def ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def rows_and_tokens():
    from hpcserve.kernels.activation import silu_and_mul_triton
    from hpcserve.kernels.embedding import embed_triton
    from hpcserve.kernels.kv_store import write_kv_triton
    from hpcserve.kernels.metadata import expand_triton, pages_triton
    from hpcserve.kernels.norm import rms_norm_triton
    from hpcserve.kernels.page_index import page_index_triton
    from hpcserve.kernels.rope import rope_kv_write_triton

    x = torch.zeros(2, 4096, dtype=BF16)
    rms_norm_triton.rms_norm(x, x[0], 1e-6)
    rms_norm_triton.add_rms_norm(x, x, x[0], 1e-6)
    silu_and_mul_triton.silu_and_mul(x)
    embed_triton.embed(ints(0, 1), x)
    qkv, cache = torch.zeros(2, 48, 128, dtype=BF16), torch.zeros(4, 16, 8, 128, dtype=BF16)
    q, k, v = qkv.split((32, 8, 8), dim=1)
    slots, weight = ints(0, 1, dtype=torch.int64), x[0, :128]
    write_kv_triton.write_kv(k, v, cache, cache, slots)
    rotation = (slots, torch.zeros(64, 128), cache, cache, slots)
    rope_kv_write_triton.rope_kv_write(q, k, v, *rotation)
    rope_kv_write_triton.rope_kv_write(q, k, v, *rotation, weight, weight)
    table = torch.zeros(2, 64, dtype=torch.int32)
    expand_triton.expand(ints(0, 1), ints(0, 1), ints(1, 1), table, table, 16, 2)
    expand_triton.expand_decode(ints(0, 1), ints(0, 1), table, table, 16)
    pages_triton.row_pages(table, ints(0, 1), ints(5, 33), 16)
    pages_triton.write_pages(table, ints(0, 1, 0, 1, 3, 4).view(3, 2))
    page_index_triton.page_index(
        table, ints(5, 33), 16, ints(0, 0, 0), ints(0, 0, 0, 0), ints(0, 0)
    )


def step_by_step():
    """The kernels that lay out eager steps, over steps that differ in rows, width and alignment."""
    from hpcserve.kernels.metadata import expand_triton, pages_triton
    from hpcserve.kernels.page_index import page_index_triton

    all_pages = torch.zeros(1024, 100, dtype=torch.int32)
    tokens = torch.zeros(1024, 1601, dtype=torch.int32)
    for rows, width in ((1, 1), (2, 7), (3, 16), (17, 33), (64, 64), (100, 5)):
        packed = torch.ones(3 * rows + 5, dtype=torch.int32)
        slots, computed, scheduled, _ = packed.split([rows, rows, rows, 5])
        expand_triton.expand(slots, computed, scheduled, all_pages, tokens, 16, rows)
        pages_triton.write_pages(all_pages, packed[: 3 * rows].view(3, rows))
        table = all_pages[:rows, :width].contiguous()
        indices = torch.zeros(rows * width, dtype=torch.int32)
        page_index_triton.page_index(table, computed, 16, scheduled, indices, slots)


def sampling():
    from hpcserve.kernels.sampling import (
        argmax_triton,
        penalties_triton,
        sample_triton,
        token_mask_triton,
    )

    logits, columns = torch.zeros(2, 32000), torch.zeros(3, 2)
    state = torch.zeros(2, 32000, dtype=torch.int32)
    penalties_triton.apply_penalties(logits, state, state.bool(), *columns)
    penalties_triton.apply_logit_bias(logits, ints(0), ints(0), torch.zeros(1))
    token_mask_triton.apply_token_mask(logits.to(BF16), state[:, :1000], ints(0, 1))
    wide = torch.zeros(2, dtype=torch.int64)
    args = (columns[0], ints(1, 1), columns[1], columns[2], wide, wide)
    sample_triton.sample(logits.to(BF16), *args)
    argmax_triton.argmax(logits.to(BF16))
    outputs = torch.zeros(4, 2, dtype=torch.int64)
    argmax_triton.store_argmax(logits, state, ints(0, 1), ints(1, 1), outputs, ints(1))


def matrix_products():
    from hpcserve.kernels.attention import paged_decode_triton, paged_prefill_triton, reference
    from hpcserve.kernels.gemm import small_m_triton

    q, cache = torch.zeros(2, 32, 128, dtype=BF16), torch.zeros(4, 16, 8, 128, dtype=BF16)
    table, lens = torch.zeros(2, 64, dtype=torch.int32), ints(1, 1)
    paged_decode_triton.paged_decode(q, cache, cache, table, lens, 0.1)
    fresh = reference.Fresh(q[:, :8], q[:, 8:16], torch.zeros(64, 128), q[0, 0], q[0, 0])
    paged_decode_triton.paged_decode(q, cache, cache, table, lens, 0.1, fresh=fresh)
    for heads, kv_heads, dim in ((8, 1, 128), (16, 2, 64), (16, 1, 256)):
        qkv = torch.zeros(2, heads + 2 * kv_heads, dim, dtype=BF16)
        parts = qkv.split((heads, kv_heads, kv_heads), 1)
        few = torch.zeros(4, 16, kv_heads, dim, dtype=BF16)
        fresh = reference.Fresh(*parts[1:], torch.zeros(64, dim))
        rows = (parts[0], few, few, table, lens, 0.1)
        paged_decode_triton.paged_decode(*rows, min_split=64, fresh=fresh)
    paged_prefill_triton.paged_prefill(q, cache, cache, table, ints(0, 1, 2), lens, 0.1)
    x, weight = torch.zeros(4, 4096, dtype=BF16), torch.zeros(4096, 4096, dtype=BF16)
    for config in small_m_triton.CANDIDATES[1::11]:
        small_m_triton.linear(x, weight, x[0], x, config)
    for config in small_m_triton.CANDIDATES[5::2][:2]:
        small_m_triton.linear(x, weight, x[0], None, config, gates=True)
    wide = torch.zeros(64, 4096, dtype=BF16)
    for config in small_m_triton.WIDE_CANDIDATES[::5]:
        small_m_triton.linear(wide[:24], weight, None, None, config)
        small_m_triton.linear(wide, weight, None, None, config, gates=True)


def ranks():
    from hpcserve.kernels.comm import push_sum_norm_triton, sum_add_rms_norm_triton
    from hpcserve.kernels.comm.peers import Peers
    from hpcserve.kernels.sampling import shard_triton

    x, wide = torch.zeros(2, 8192, dtype=BF16), torch.zeros(8, dtype=torch.int64)
    for size in (2, 4, 8):
        peers = Peers((1 << 40,) * size, wide, ints(0, 0), 1)
        sum_add_rms_norm_triton.sum_add_rms_norm(peers, x, x[0], 1e-6)
        for whole in (True, False):
            outputs = push_sum_norm_triton.Outputs(torch.stack((x, x)), (1 << 40,) * size)
            push_sum_norm_triton.push_sum_norm(peers, outputs, x, x[0], 1e-6, whole)
    shard_triton.best_of_part(x, 8192, 8000, None)
    shard_triton.best_of_part(x, 8192, 8000, (torch.zeros(2), wide[:2], wide[:2]))
    pairs, outputs = torch.zeros(4, 2, 2), torch.zeros(4, 2, dtype=torch.int64)
    shard_triton.choose(pairs)
    state = torch.zeros(2, 64, dtype=torch.int32)
    shard_triton.store_choice(pairs, state, ints(0, 1), ints(1, 1), outputs, ints(1))


def experts():
    from hpcserve.kernels.moe import grouped_gemm_triton, pack_triton, route_triton, tuned

    logits = torch.zeros(4, 128, dtype=BF16)
    weights, ids = route_triton.route(logits, 8, True)
    x, gate_up = torch.zeros(4, 256, dtype=BF16), torch.zeros(128, 192, 256, dtype=BF16)
    down = torch.zeros(128, 256, 96, dtype=BF16)
    grouped_gemm_triton.experts(x, gate_up, down, weights, ids, 0)
    for copies in (1, 4):
        pack_triton.pack(x, weights, ids, 8, copies)
    blocks = torch.zeros(2, dtype=torch.int32)
    for config in tuned.CANDIDATES[2::3]:
        pairs = torch.zeros(2 * config[0], dtype=torch.int32)
        grouped_gemm_triton.grouped_gemm(x, gate_up, pairs, blocks, 32, 8, config)


def compile_instead_of_launching():
    """From here on a launch of a kernel compiles it and says what came of it."""
    target = GPUTarget("cuda", 90, 32)
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device=None: 0,
            get_current_target=lambda: target,
        )
    )
    JITFunction.run = compile_only
    from hpcserve.kernels.launch import dependent

    dependent.available = lambda device: True


if __name__ == "__main__":
    compile_instead_of_launching()
    families = {
        "rows": rows_and_tokens,
        "sampling": sampling,
        "products": matrix_products,
        "ranks": ranks,
        "experts": experts,
        "steps": step_by_step,
    }
    families[sys.argv[1]]()
