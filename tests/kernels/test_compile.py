"""The compiler refuses some of what the interpreter runs, so compile for sm_90 as well."""

import pytest

pytest.importorskip("triton")

#: Shared memory that one program may have on Hopper.
MAX_SHARED = 227 * 1024
COUNTS = {"rows": 12, "sampling": 11, "products": 16, "ranks": 15, "experts": 12}


@pytest.mark.parametrize("family", COUNTS)
def test_kernels_compile_for_hopper(family, said_for_hopper):
    kernels = said_for_hopper("compile_for_hopper.py", family)
    assert len(kernels) == COUNTS[family]
    assert all(kernel["shared"] <= MAX_SHARED for kernel in kernels)
    if family == "products":
        assert all(k["tensor_cores"] and k["asynchronous_copies"] for k in kernels)
    if family == "ranks":
        meetings = {"_sum_kernel": 1, "_push_kernel": 2}
        met = [k for k in kernels if k["kernel"] in meetings]
        assert len(met) == 9
        for k in met:
            assert k["release"] == k["acquire"] == meetings[k["kernel"]] and k["stack"] == 0


def test_steps_that_differ_compile_nothing_anew(said_for_hopper):
    """A new variant takes a tenth of a second and more, while every running request waits."""
    variants = {
        (kernel["kernel"], kernel["variant"])
        for kernel in said_for_hopper("compile_for_hopper.py", "steps")
    }
    assert sorted(name for name, _ in variants) == [
        "_expand_kernel",
        "_page_index_kernel",
        "_write_pages_kernel",
    ]
