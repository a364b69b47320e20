"""Presets of models and clusters: those that are shipped, and one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

import hpcserve

CONFIGS = Path(hpcserve.__file__).parent / "configs"


@pytest.mark.parametrize("preset", sorted((CONFIGS / "models").glob("*.yaml")), ids=str)
def test_every_model_preset_renders(slurm, preset, run):
    text = run("render", "submit", "--preset", preset.stem, "--cluster", "efa-p5").stdout
    assert f"model preset {preset.stem}" in text


@pytest.mark.parametrize("preset", sorted((CONFIGS / "clusters").glob("*.yaml")), ids=str)
def test_every_cluster_preset_renders(slurm, preset, run):
    text = run("render", "submit", "org/model", "--cluster", preset.stem).stdout
    assert f"cluster preset {preset.stem}" in text


def test_a_saved_preset_gives_the_same_script(slurm, tmp_path, run):
    words = ["--tp", "2", "--no-auth", "--mount", "/a:/b", "--mount", "/c:/d", "--time", "1:00"]
    saved = run("presets", "save", "my-70b", "org/m", "--about", "ours: 2 GPUs", *words)
    assert "no-auth" not in saved.stdout  # by the option's own name
    path = tmp_path / ".config/hpcserve/presets/my-70b.yaml"
    assert saved.stdout == path.read_text()
    assert "ours: 2 GPUs" in run("presets", "list").stdout
    assert run("presets", "show", "my-70b").stdout == path.read_text()

    def script(*more):
        text = run("render", "submit", "--run-dir", "/r", *more).stdout
        return [line.partition("  # ")[0] for line in text.splitlines() if line[:4] != "#   "]

    assert script("--preset", "my-70b") == script("org/m", *words)
    again = run("presets", "save", "my-70b", "org/other", code=2)
    assert "--force replaces it" in again.stderr
    run("presets", "save", "my-70b", "--preset", "my-70b", "--tp", "4", "--force")
    assert "tp: 4" in path.read_text() and "model: org/m" in path.read_text()


def test_a_preset_keeps_what_is_not_its_own_out(slurm, monkeypatch, run):
    monkeypatch.setenv("HPCSERVE_CONTEXT_LENGTH", "512")
    words = ["--api-key", "secret", "--run-dir", "/r", "--cluster", "efa-p5", "--tp", "2"]
    text = run("presets", "save", "small", *words).stdout
    assert text.splitlines()[1:] == ["tp: 2"]
    assert "no name for a preset" in run("presets", "save", "a/b", code=2).stderr
