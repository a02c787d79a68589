"""What a program's file says of its model, so that it can be used without it.

The key ``model`` of a program's metadata::

    inputs    by name: {"values": n} for an index input, integers 0 to n - 1;
              {"channels": c, "bits": b, "scale": [...]} for a given tensor, (T, c) real values,
              which are divided by the scale and rounded to b bits
    outputs   list of {"tensor", "pool", "normalize", "scale"}: integers times scale, then pooled
              and normalised by the host as `graph.Output` says
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from systolith.compiler.tensors import Unsupported
from systolith.errors import UserError
from systolith.fixed import Int, saturate
from systolith.forward import real_output
from systolith.graph import Given, Graph, Output
from systolith.program import Program

MASK = "attention_mask"


def described(program: Program, graph: Graph) -> Program:
    """The program with the description of its model."""
    inputs: dict[str, Any] = {name: {"values": rows} for name, rows in graph.indices.items()}
    for node in graph.of_kind(Given):
        tensor = graph.tensors[node.out]
        inputs[node.out] = {
            "channels": tensor.channels,
            "bits": tensor.bits,
            "scale": list(tensor.scale),
        }
    results = [
        asdict(output) | {"scale": list(graph.tensors[output.tensor].scale)}
        for output in graph.outputs
    ]
    model = {"inputs": inputs, "outputs": results}
    return replace(program, metadata=program.metadata | {"model": model})


def _description(program: Program) -> dict[str, Any]:
    if program.metadata.get("kind") != "sequence" or "model" not in program.metadata:
        raise Unsupported(
            "The program is not one for whole sequences: a language model writes text by "
            "`generate`, from its quantized model"
        )
    return program.metadata["model"]


def input_names(program: Program) -> list[str]:
    """The inputs that a program reads."""
    return list(_description(program)["inputs"])


def sequences(program: Program, arrays: Mapping[str, ArrayLike]) -> list[dict[str, Int]]:
    """The integers of each sequence by input, (T,) or (T, channels), without padding.

    ``arrays``: by input, integers [B, T] or [T] for an index input, real values [B, T, channels] or
    [T, channels] for a given tensor; and perhaps ``attention_mask`` [B, T], 1 for tokens, the
    padding on the right. Raises ``UserError`` for anything else.
    """
    inputs = _description(program)["inputs"]
    unknown = sorted(set(arrays) - {*inputs, MASK})
    if unknown:
        raise UserError(f"The model has no input {unknown[0]!r}; it has {', '.join(inputs)}")
    found = {}
    for name, spec in inputs.items():
        if name not in arrays:
            raise UserError(f"The input {name!r} is missing; the model reads {', '.join(inputs)}")
        found[name] = _integers(name, np.asarray(arrays[name]), spec)
    shapes = {name: x.shape[:2] for name, x in found.items()}
    (count, tokens), *others = shapes.values()
    if any(shape != (count, tokens) for shape in others):
        raise UserError(
            "The inputs must have the same number of sequences and of tokens, not "
            + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        )
    ends = [tokens] * count
    if MASK in arrays:
        mask = np.atleast_2d(np.asarray(arrays[MASK])) != 0
        ends = mask.sum(axis=-1).tolist()
        if (
            mask.shape != (count, tokens)
            or not (mask == (np.arange(tokens) < np.array(ends)[:, None])).all()
        ):
            raise UserError(
                f"{MASK} must be {[count, tokens]}, 1 for tokens and 0 for padding on the right"
            )
    if not count or not all(ends):
        raise UserError("There must be at least one sequence, and a token in each")
    return [{name: x[b, :end] for name, x in found.items()} for b, end in enumerate(ends)]


def _integers(name: str, x: NDArray, spec: Mapping[str, Any]) -> Int:
    if "values" in spec:
        if x.dtype.kind not in "iu" or x.ndim not in (1, 2):
            raise UserError(
                f"The input {name!r} must be integers [B, T] or [T], not {x.dtype} {list(x.shape)}"
            )
        x = np.atleast_2d(x).astype(np.int64)
        if x.size and not 0 <= x.min() <= x.max() < spec["values"]:
            raise UserError(
                f"Values of {name!r} must be 0 to {spec['values'] - 1}, not {x.min()} to {x.max()}"
            )
        return x
    if x.dtype.kind not in "fiu" or x.ndim not in (2, 3) or x.shape[-1] != spec["channels"]:
        raise UserError(
            f"The input {name!r} must be numbers [B, T, {spec['channels']}] or "
            f"[T, {spec['channels']}], not {x.dtype} {list(x.shape)}"
        )
    if not np.isfinite(x).all():
        raise UserError(f"The input {name!r} holds a NaN or an infinity")
    x = x.reshape(-1, *x.shape[-2:]) / np.array(spec["scale"])
    return saturate(np.round(x).astype(np.int64), spec["bits"])


def results(program: Program, outputs: Mapping[str, Int]) -> dict[str, NDArray[np.float64]]:
    """The real outputs of one sequence, pooled and normalised, by `output_name`."""
    found = {}
    for spec in _description(program)["outputs"]:
        output = Output(**{name: spec[name] for name in ("tensor", "pool", "normalize")})
        x = real_output(outputs[output.tensor], spec["scale"], output)
        found[output_name(output)] = x
    return found


def output_name(output: Output) -> str:
    """The name of an output in a file: its tensor's, and how its tokens were pooled."""
    return output.tensor if output.pool == "none" else f"{output.tensor}.{output.pool}"
