"""However the model is split over processes, its text is that of one process (fp32, gloo)."""

from __future__ import annotations

import pytest

from hpcserve import LLM


def options_of(layout: str) -> dict[str, int]:
    return {name: int(value) for name, value in (word.split("=") for word in layout.split())}


@pytest.mark.parametrize("layout", ["tp=2", "tp=4", "pp=3", "tp=2 pp=2"])
def test_dense(kit, folder_of, expected, layout):
    before = set(kit.children())
    with LLM(str(folder_of("qwen3")), **kit.options, **options_of(layout)) as llm:
        assert kit.texts(llm) == expected("qwen3")
        assert llm.stats().num_running == 0
    assert [one for one in kit.children() if one not in before] == []


@pytest.mark.parametrize(
    ("model_type", "layout"),
    [("qwen3_moe", "tp=2 ep=2"), ("qwen2_moe", "tp=2"), ("mixtral", "tp=4 ep=2")],
)
def test_experts(kit, folder_of, expected, model_type, layout):
    with LLM(str(folder_of(model_type)), **kit.options, **options_of(layout)) as llm:
        assert kit.texts(llm) == expected(model_type)
