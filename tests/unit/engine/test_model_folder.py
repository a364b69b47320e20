from pathlib import Path

import pytest

from hpcserve.config.engine import EngineConfig
from hpcserve.demo import MODEL_NAME, tiny_chat_path
from hpcserve.engine.model_folder import find_folder, model_name, served_name, with_model_folder
from hpcserve.errors import ModelNotFoundError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--meta-llama--Llama-3.1-8B"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return repository


def test_a_model_of_the_hub_keeps_its_name(hub: Path) -> None:
    folder = find_folder("meta-llama/Llama-3.1-8B", None)
    assert folder == hub / "snapshots" / COMMIT
    assert model_name(folder) == "meta-llama/Llama-3.1-8B"
    config = with_model_folder(EngineConfig.from_options({"model": "meta-llama/Llama-3.1-8B"}))
    assert served_name(config, None) == "meta-llama/Llama-3.1-8B"
    assert served_name(config, "mine") == "mine"
    with pytest.raises(ModelNotFoundError, match="hf download"):
        find_folder("meta-llama/Llama-3.1-70B", None)


def test_a_folder_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    assert model_name(find_folder(str(tmp_path / "llama"), None)) == "llama"
    assert model_name(tiny_chat_path()) == MODEL_NAME
