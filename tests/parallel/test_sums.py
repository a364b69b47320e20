"""Sums inside the norms' kernels, in every kind of layout, on CPUs: the text is that of one process."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

#: Of hidden states in fp32.
ROW_BYTES = 64 * 4


@pytest.mark.parametrize(
    ("model_type", "layout"),
    [
        ("qwen3", {"tp": 2}),
        ("qwen3", {"tp": 2, "pp": 2}),
        ("qwen2_moe", {"tp": 2, "dp": 2, "ep": 2, "enable_dp_attention": True}),
    ],
)
def test_text_is_that_of_one(complete, expected, monkeypatch, tmp_path, capfd, model_type, layout):
    monkeypatch.setenv("SUMS_FOLDER", str(tmp_path))
    # One row; up to 24; and prompts are longer.
    monkeypatch.setenv("HPCSERVE_FUSED_BYTES", str(ROW_BYTES))
    monkeypatch.setenv("HPCSERVE_PUSHED_BYTES", str(24 * ROW_BYTES))
    found = complete("sum_core", model_type, layout, 4)
    wanted = expected(model_type)[:4]
    assert found == [*wanted, wanted[3]]
    said = capfd.readouterr().err
    # Both ranks of every step: the last request alone takes 15 steps of 2 sums a layer.
    assert said.count("a sum was made in one shot") >= 2 * 15 * 2
    assert said.count("a sum was pushed") >= 2 * 15 * 2
