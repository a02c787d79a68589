"""Reads the weights of a checkpoint, and nothing but what its description demands.

One `.safetensors` file, or several with a `model.safetensors.index.json` that says which tensor
lies where. Shapes are compared before anything is read: a wrong description costs no memory.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from systolith.errors import CheckpointError

INDEX = "model.safetensors.index.json"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_Shapes = Iterable[tuple[str, tuple[int, ...]]]


class SafetensorsFile:
    """The tensors of a checkpoint by name; ``path`` ends with .safetensors, or with `INDEX`.

    ``names``: of all its tensors. A file that is missing, truncated or of another format raises
    CheckpointError here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[Path, safe_open] = {}
        self._places = {}
        for part in self._parts():
            with _reading(part):
                self._files[part] = safe_open(part, framework="pt")
                self._places |= dict.fromkeys(self._files[part].keys(), part)
        self.names = frozenset(self._places)

    def _parts(self) -> list[Path]:
        """The files that hold tensors."""
        if self.path.name != INDEX:
            return [self.path]
        try:
            places = json.loads(self.path.read_text(encoding="utf-8"))["weight_map"].values()
            return [self.path.with_name(name) for name in sorted(set(places))]
        except OSError as e:
            raise CheckpointError(f"cannot read {self.path}: {e.strerror}") from e
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{self.path} does not say in its weight_map which file holds "
                                  f"which tensor; save the model again") from e

    def read(self, family: str, shapes: _Shapes, *, copies: Mapping[str, str] | None = None,
             unused: Callable[[str], bool] = lambda name: False) -> dict[str, Tensor]:
        """Every tensor of ``shapes`` (name, shape) as float32, without a NaN or an infinity.

        ``copies``: a tensor that may be there beside the one that it equals, by name. ``unused``:
        whether a name is of no importance here. A tensor that is missing, of another shape or
        type, or that has no place in the model raises CheckpointError; ``family`` is for messages.
        """
        tensors: dict[str, Tensor] = {}
        for name, shape in shapes:
            if name not in self.names:
                raise CheckpointError(f"{self.path} has no tensor {name}, which config.json "
                                      f"demands; the two belong to different models")
            with _reading(self._places[name]):
                found = tuple(self._files[self._places[name]].get_slice(name).get_shape())
            if found != shape:
                raise CheckpointError(f"{self.path}: tensor {name} has the shape {list(found)}, "
                                      f"but config.json demands {list(shape)}")
            tensor = self._tensor(name)
            if tensor.dtype not in _FLOATS:
                raise CheckpointError(f"{self.path}: tensor {name} holds {tensor.dtype}, but must "
                                      f"hold float32, float16 or bfloat16; load the checkpoint "
                                      f"before its quantization")
            tensors[name] = finite(self.path, name, tensor)
        for name in sorted(self.names - tensors.keys()):
            same = (copies or {}).get(name)
            if unused(name) or (same in tensors
                                and torch.equal(self._tensor(name).float(), tensors[same])):
                continue
            raise CheckpointError(f"{self.path} has a tensor {name}, for which config.json has no "
                                  f"place; the two belong to different models, or the "
                                  f"architecture is not {family}")
        return tensors

    def _tensor(self, name: str) -> Tensor:
        with _reading(self._places[name]):
            return self._files[self._places[name]].get_tensor(name)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says in one sentence what the library and the system complain of."""
    try:
        yield
    except SafetensorError as e:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({e}); "
                              f"copy it again") from e
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror or e}") from e


def finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    """The tensor as float32, once it holds numbers only; otherwise CheckpointError."""
    tensor = tensor.float()
    if not tensor.isfinite().all():
        kind = "a NaN" if tensor.isnan().any() else "an infinity"
        raise CheckpointError(f"{path}: tensor {name} holds {kind}; "
                              f"the checkpoint is damaged or its training diverged")
    return tensor
