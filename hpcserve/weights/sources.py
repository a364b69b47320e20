"""Where a model's files are: a folder, or a hub name that is already in the local cache.

Imports no torch, since the frontend asks as well (for the tokenizer).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from hpcserve.errors import ModelNotFoundError, WeightsError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(model: str, revision: str | None = None) -> Path:
    """The folder of `model`: itself if it is one, else its snapshot in the Hugging Face cache.

    Nothing is downloaded: compute nodes often have no network.
    Raises ModelNotFoundError that says what to do.
    """
    if not model:
        raise ModelNotFoundError("no model is named; pass --model FOLDER")
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if _HUB_NAME.fullmatch(model) is None:
        raise ModelNotFoundError(f"there is no model folder {model}")
    return _cached_snapshot(model, revision)


def _cached_snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        wanted = name if revision is None else f"{name} at revision {revision}"
        raise ModelNotFoundError(
            f"{wanted} is neither a folder nor in the Hugging Face cache {constants.HF_HUB_CACHE}; "
            f"where there is network, run `hf download {name}`, or pass a folder"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in the order in which they are read.

    Raises WeightsError for a folder without any, or whose index names a file that is not there.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        return _indexed_files(index)
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    hint = ""
    if any(folder.glob("*.bin")):
        hint = "; pickled .bin weights are not read, save the model with safe_serialization=True"
    raise WeightsError(f"{folder} holds no .safetensors file{hint}")


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} is no index of safetensors: {error!r}") from error
    if not files:
        raise WeightsError(f"{index} is no index of safetensors: its weight_map is empty")
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{index.name} names {file.name}, which is not in {index.parent}")
    return files
