"""Messages to bytes and back: msgpack, tagged, arrays as raw bytes."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

T = TypeVar("T")


def _enc_hook(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype != np.int32:
            raise TypeError(f"only int32 arrays are sent, not {value.dtype}")
        return value.tobytes()
    raise TypeError(f"cannot send a {type(value).__name__}")


def _dec_hook(wanted: Any, value: Any) -> Any:
    origin = getattr(wanted, "__origin__", wanted)
    if origin is np.ndarray:
        return np.frombuffer(value, dtype=np.int32)
    raise TypeError(f"cannot receive a {wanted}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_enc_hook)


def encode(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message)


class Decoder(Generic[T]):
    """Decodes messages of one union, such as `FrontendMessage`; anything else raises
    msgspec.ValidationError."""

    def __init__(self, union: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(union, dec_hook=_dec_hook)

    def decode(self, data: bytes) -> T:
        message: T = self._decoder.decode(data)
        return message
