"""What a whole server would launch on a Hopper GPU compiles, fits, and compiles before it serves."""

import pytest

pytest.importorskip("triton")

#: What a multiprocessor of Hopper has for one program.
MAX_SHARED, REGISTERS = 227 * 1024, 64 * 1024
#: Bytes of stack: a few are no spilled registers to worry about.
MAX_STACK = 64
PATHS = [
    ("tiny-chat", 1),
    ("llama-3.1-70b", 8, "--rank", 7, "--fused"),
    ("qwen3-30b-a3b", 4, "--rank", 2),
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[0])
def test_serving_path(path, said_for_hopper):
    said = said_for_hopper("serve_for_hopper.py", *path)
    serving = said.index({"phase": "serving"})
    for facts in (*said[:serving], *said[serving + 1 :]):
        assert facts["shared"] <= MAX_SHARED, facts
        assert facts["registers"] * facts["warps"] * 32 <= REGISTERS, facts
        assert facts["stack"] <= MAX_STACK, facts
    at_start = {(facts["kernel"], facts["variant"]) for facts in said[:serving]}
    later = {(facts["kernel"], facts["variant"]) for facts in said[serving + 1 :]}
    # Beside a prompt, few rows and many; in graphs with rotation, with parts of 256 and of 64 tokens.
    assert sum(name == "_decode_kernel" for name, _ in later) == 4
    if "--fused" in path:
        assert {"_sum_kernel", "_push_kernel"} <= {name for name, _ in later}
    assert later - at_start == set()
