"""The quantized-model file (.slq): an integer graph, its proof and its vocabulary, checked twice.

A safetensors file: the graph's constants under "graph.", the bounds that prove its accumulators
under "proof.", the tokenizer's file as bytes, and a JSON manifest in the metadata. Whoever loads
one has a graph whose every parameter is legal and whose accumulators are proven not to overflow;
whatever cannot be that is refused in one sentence.
"""

import hashlib
import json
import os
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_origin

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from systolith import bounds
from systolith.errors import UserError
from systolith.graph import KINDS, Graph, GraphError, Node, Output, Tensor

FORMAT = "systolith-model"
"""Key of the manifest in the file's metadata. The only one: safetensors writes several in an
arbitrary order, and the same model has to give the same bytes."""
VERSION = 2
PREFIX = "graph."
PROOF = "proof."
TOKENIZER = "tokenizer"


class ArtifactError(UserError):
    """A quantized-model file that cannot be used."""


class _OtherVersion(ArtifactError):
    """A file of another version, which is not to be judged by this version's rules."""


@dataclass(frozen=True)
class Artifact:
    """A quantized model: ``graph``, ``tokenizer`` (the bytes of its file), ``metadata``.

    ``metadata`` is JSON data free for the producer: where the model came from, how it was
    quantized, what was measured. Creating an artifact proves the graph; ``GraphError`` where an
    accumulator could overflow.
    """

    graph: Graph
    tokenizer: bytes
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bounds.prove(self.graph)

    def save(self, path: Path) -> None:
        """Writes the file atomically: whoever looks sees the old file, the new one, or none."""
        arrays = {PREFIX + name: value for name, value in self.graph.constants.items()}
        arrays |= {PROOF + name: bound for name, bound in bounds.prove(self.graph).items()}
        arrays[TOKENIZER] = np.frombuffer(self.tokenizer, dtype=np.uint8)
        arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        manifest = {
            "version": VERSION,
            "nodes": [{"kind": type(node).__name__} | asdict(node) for node in self.graph.nodes],
            "tensors": [asdict(tensor) for tensor in self.graph.tensors.values()],
            "outputs": [asdict(output) for output in self.graph.outputs],
            **{name: getattr(self.graph, name) for name in ("context", "bos", "eos")},
            "checksum": _checksum(arrays),
            "metadata": self.metadata,
        }
        header = {FORMAT: json.dumps(manifest, sort_keys=True, allow_nan=False)}
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.write_bytes(save(arrays, metadata=header))
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ArtifactError(f"Cannot write {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads and checks a file; raises ``ArtifactError`` with one sentence if it is not sound.

        Checked: format, version, completeness, checksum, every node, constant and scale (see
        `Graph`), and the overflow proof, which is made again and compared with the file's.
        """
        if not path.is_file():
            raise ArtifactError(f"There is no quantized model {path}: quantize one first")
        try:
            text, arrays = _read(path)
        except SafetensorError as error:
            raise ArtifactError(
                f"{path} is truncated or not a quantized model ({error}): quantize it again"
            ) from None
        except OSError as error:
            raise ArtifactError(f"Cannot read {path}: {error.strerror or error}") from None
        try:
            manifest = _Manifest(json.loads(text))
            version = manifest.get("version", int)
            if version > VERSION:
                raise _OtherVersion(
                    f"{path} has version {version}, this release reads up to {VERSION}: "
                    f"install a newer systolith"
                )
            if version < VERSION:
                raise _OtherVersion(
                    f"{path} has version {version}, this release reads version {VERSION}: "
                    f"quantize the model again"
                )
            if manifest.get("checksum", str) != _checksum(arrays):
                raise ArtifactError("its tensors do not have the checksum of its manifest")
            tokenizer = arrays.pop(TOKENIZER).tobytes()
            constants, proof = (
                {name.removeprefix(p): x for name, x in arrays.items() if name.startswith(p)}
                for p in (PREFIX, PROOF)
            )
            artifact = cls(manifest.graph(constants), tokenizer, manifest.get("metadata", dict))
            made = bounds.prove(artifact.graph)
            same = made.keys() == proof.keys() and all(
                np.array_equal(bound, proof[name]) for name, bound in made.items()
            )
            if not same:
                raise ArtifactError("its overflow proof is not that of its weights")
        except _OtherVersion:
            raise
        except (UserError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged: {error}; quantize the model again") from None
        return artifact


def _read(path: Path) -> tuple[str, dict[str, NDArray]]:
    """Manifest and tensors of a file of the right format."""
    with safe_open(str(path), framework="numpy") as file:
        header = file.metadata() or {}
        if FORMAT not in header:
            raise ArtifactError(f"{path} is not a quantized model of systolith")
        try:
            return header[FORMAT], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (TypeError, AttributeError, KeyError) as error:
            raise ArtifactError(
                f"{path} is damaged: it holds a tensor of an unknown type ({error})"
            ) from None


def _checksum(arrays: dict[str, NDArray]) -> str:
    """sha256 of all tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, value.dtype.str, value.shape]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


class _Manifest:
    """Reads a manifest whose content is not trusted."""

    def __init__(self, data: Any):
        if not isinstance(data, dict):
            raise ArtifactError("its manifest is not a JSON object")
        self.data = data

    def get(self, name: str, kind: type) -> Any:
        value = self.data.get(name)
        if type(value) is not kind:
            raise ArtifactError(f"{name} of its manifest must be {kind.__name__}, not {value!r}")
        return value

    def graph(self, constants: dict[str, NDArray]) -> Graph:
        tensors = [_tensor(_Manifest(item)) for item in self.get("tensors", list)]
        return Graph(
            nodes=tuple(_node(_Manifest(item)) for item in self.get("nodes", list)),
            tensors={tensor.name: tensor for tensor in tensors},
            constants=constants,
            outputs=tuple(_output(_Manifest(item)) for item in self.get("outputs", list)),
            context=self.get("context", int),
            bos=self.token("bos"),
            eos=self.token("eos"),
        )

    def token(self, name: str) -> int | None:
        return None if self.data.get(name, MISSING) is None else self.get(name, int)


def _tensor(item: _Manifest) -> Tensor:
    return Tensor(
        name=item.get("name", str),
        channels=item.get("channels", int),
        bits=item.get("bits", int),
        scale=tuple(item.get("scale", list)),
    )


def _output(item: _Manifest) -> Output:
    return Output(
        tensor=item.get("tensor", str),
        pool=item.get("pool", str),
        normalize=item.get("normalize", bool),
    )


def _shown(value: object) -> str:
    return "absent" if value is MISSING else repr(value)


def _node(item: _Manifest) -> Node:
    name = item.get("kind", str)
    kind = KINDS.get(name)
    if kind is None:
        raise GraphError(f"this release has no node of the kind {name!r}")
    known = {spec.name: spec for spec in fields(kind)}
    unknown = sorted(set(item.data) - set(known) - {"kind"})
    if unknown:
        raise GraphError(f"{name} nodes have no parameter {unknown[0]!r}")
    values = {}
    for parameter, spec in known.items():
        value = item.data.get(parameter, MISSING)
        # JSON knows the types that nodes have, str, int, bool and None, and lists for tuples.
        if get_origin(spec.type) is tuple and isinstance(value, list):
            value = tuple(value)
            good = all(isinstance(item, str) for item in value)
        else:
            good = isinstance(value, spec.type) and (type(value) is not bool or spec.type is bool)  # type: ignore[arg-type]
        if not good:
            raise GraphError(f"the {parameter} of {name} nodes cannot be {_shown(value)}")
        values[parameter] = value
    return kind(**values)
