"""tiny-chat: the small chat model that ships with hpcserve, and the code that made it.

Importing this package costs no torch: only :func:`tiny_chat_path` lives here.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["MODEL_NAME", "tiny_chat_path"]

MODEL_NAME = "tiny-chat"


def tiny_chat_path() -> Path:
    """Return the folder of the bundled model, in Hugging Face format."""
    return Path(__file__).resolve().parent / "tiny_chat"
