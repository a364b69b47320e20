from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.errors import ConfigError
from hpcserve.launcher.hostlist import expand_hostlist


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[1-2,07-09]", ["n1", "n2", "n07", "n08", "n09"]),
        ("a[1-2]b[0-1],c", ["a1b0", "a1b1", "a2b0", "a2b1", "c"]),
        ("gpu-a[099-101].site", ["gpu-a099.site", "gpu-a100.site", "gpu-a101.site"]),
        ("", []),
    ],
)
def test_expands(text, names):
    assert expand_hostlist(text) == names


@pytest.mark.parametrize("text", ["n[1-2", "n1]", "n[a-b]", "n[[1]]"])
def test_refuses_what_is_no_list(text):
    with pytest.raises(ConfigError):
        expand_hostlist(text)


@given(st.lists(st.from_regex(r"[a-z]{1,4}[0-9]{1,3}(-ib)?", fullmatch=True), max_size=8))
def test_plain_names_are_themselves(names):
    assert expand_hostlist(",".join(names)) == names
