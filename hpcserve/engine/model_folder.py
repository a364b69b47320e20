"""From what the user called the model to the folder that holds it."""

from __future__ import annotations

import sys
from pathlib import Path

from hpcserve import envs
from hpcserve.config.engine import EngineConfig
from hpcserve.errors import ModelNotFoundError
from hpcserve.tokenizer.tokenizer import Tokenizer

_HUB_PREFIX = "models--"


def with_model_folder(config: EngineConfig) -> EngineConfig:
    """The config with absolute folders for model and tokenizer.

    A model that is not named is HPCSERVE_MODEL's, or the bundled tiny-chat, said on stderr.
    Raises ModelNotFoundError.
    """
    name = config.model.model or envs.HPCSERVE_MODEL.get()
    if name:
        folder = find_folder(name, config.model.revision)
    else:
        from hpcserve.demo import tiny_chat_path

        folder = tiny_chat_path()
        print(f"no model named, using the bundled tiny-chat ({folder})", file=sys.stderr)
    tokenizer = config.model.tokenizer
    return config.replace(
        model=str(folder),
        tokenizer=None if tokenizer is None else str(find_folder(tokenizer, None)),
    )


def model_name(folder: Path) -> str:
    """What clients call the model of a folder, where nobody named it: the folder's name, or the
    hub's where it is of the hub cache (models--ORG--NAME/snapshots/COMMIT)."""
    from hpcserve.demo import MODEL_NAME, tiny_chat_path

    if folder == tiny_chat_path():
        return MODEL_NAME
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith(_HUB_PREFIX):
        return repository.removeprefix(_HUB_PREFIX).replace("--", "/")
    return folder.name


def served_name(config: EngineConfig, wanted: str | None) -> str:
    """What clients of a server call its model.  config: went through `with_model_folder`."""
    return wanted or model_name(Path(config.model.model)) or "model"


def find_folder(name: str, revision: str | None) -> Path:
    """A folder by its path, or a hub name's folder in the local hub cache (nothing is downloaded)."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise ModelNotFoundError(f"there is no model folder {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"{name} is neither a folder nor a model in the local hub cache; download it first with "
            f"`hf download {name}`"
        ) from error


def load_tokenizer(config: EngineConfig) -> Tokenizer:
    """The tokenizer of a config that went through `with_model_folder`."""
    model = config.model
    template = None if model.chat_template is None else Path(model.chat_template).expanduser()
    return Tokenizer.load(
        Path(model.tokenizer or model.model),
        chat_template=template,
        trust_remote_code=model.trust_remote_code,
    )
