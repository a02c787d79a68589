"""Hugging Face's config.json: what describes a model, read without trust.

Every complaint is a `CheckpointError` of one sentence that begins with the file's name.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systolith.errors import CheckpointError

ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh", "sigmoid": "sigmoid",
}
"""Hugging Face's names of activation functions, and ours (`network.FUNCTIONS`)."""


@dataclass(frozen=True)
class Description:
    """A JSON object in a file; ``path`` is what messages call it. A null counts as absent."""

    path: Path
    raw: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> "Description":
        """Reads a file that must hold a JSON object."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise CheckpointError(f"cannot read {path}, which must describe the model: "
                                  f"{e.strerror}") from e
        except ValueError as e:
            raise CheckpointError(f"{path} is not JSON: {e}") from e
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path} must hold a JSON object")
        return cls(path, raw)

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it stands."""
        value = self.raw.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer; demanded where there is no default."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problem = f"not {value!r}" if key in self.raw else "but is missing"
            raise self.error(f"{key} must be a positive integer, {problem}")
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.get(key, default)
        if (not isinstance(value, (int, float)) or isinstance(value, bool)
                or not 0 < value < math.inf):
            raise self.error(f"{key} must be a positive number, not {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, not {value!r}")
        return value

    def activation(self, key: str, default: str) -> str:
        """Our name of an activation function."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.error(f"the activation function {value!r} is not supported; {key} must be "
                             f"one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def token(self, key: str, vocabulary: int) -> int | None:
        """One of so many tokens, of several the first, or None."""
        value = self.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if value is not None and (type(value) is not int or not 0 <= value < vocabulary):
            raise self.error(f"{key} must be one of 0 to {vocabulary - 1}, not {value!r}")
        return value

    def refuse_quantized(self) -> None:
        """Raises where the checkpoint holds a model that others have quantized."""
        if self.raw.get("quantization_config"):
            raise self.error("the checkpoint is already quantized (quantization_config); use the "
                             "float one that it was made from")

    def error(self, problem: str) -> CheckpointError:
        """An exception that names the file."""
        return CheckpointError(f"{self.path}: {problem}")
