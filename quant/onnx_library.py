"""The optional library `onnx`: imported when it is needed, and what users are told without it."""

from typing import Any

from systolith.errors import UserError


class OnnxError(UserError):
    """An ONNX file that cannot be read or written, or a model that the format cannot hold."""


def library() -> Any:
    """The module `onnx`; raises `OnnxError` where it is not installed."""
    try:
        import onnx
    except ImportError:
        raise OnnxError("ONNX files need the package onnx, which is not installed; "
                        "pip install 'systolith[onnx]'") from None
    return onnx
