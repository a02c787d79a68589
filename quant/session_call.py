"""Calls of a quantized model as sequences of integers, and their outputs as its results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from systolith.fixed import Int
from systolith.forward import ForwardError
from systolith.graph import Given, Graph
from systolith.quant.calling import Signature
from systolith.quant.torch_model import IntegerModule


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A call: sequence b has ``sequences[b]``, integers by the inputs' names, (length,) or
    (length, channels), without its padding. ``tokens``: T, padding included; ``masked``: whether
    there may be any; ``numpy``: no argument was a torch tensor, and no result is to be one."""

    sequences: list[dict[str, NDArray[np.int64]]]
    tokens: int
    masked: bool
    numpy: bool

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [len(next(iter(sequence.values()))) for sequence in self.sequences]


class Caller:
    """Reads arguments and makes results like `IntegerModule.forward`."""

    def __init__(self, graph: Graph, signature: Signature | None = None) -> None:
        self.module = IntegerModule(graph, signature)

    def read(self, values: tuple[Any, ...], named: Mapping[str, Any]) -> Batch:
        """The arguments of a call; raises a ``UserError`` where they are not of the model."""
        arguments = (*values, *named.values())
        numpy = any(isinstance(value, np.ndarray) for value in arguments) and not any(
            isinstance(value, Tensor) for value in arguments)
        module = self.module
        inputs, lengths = module.signature.read(values, named)
        for name in module.inputs:
            if name not in inputs:
                raise ForwardError(f"The input {module.signature.argument(name)!r} is missing")
        count, tokens = module.check(inputs)
        given = {node.out for node in module.graph.of_kind(Given)}
        integers = {name: module.given(name, x) if name in given else x
                    for name, x in inputs.items()}
        ends = [tokens] * count if lengths is None else lengths.tolist()
        sequences = [
            {name: x[b, :end].cpu().numpy().astype(np.int64) for name, x in integers.items()}
            for b, end in enumerate(ends)]
        return Batch(sequences=sequences, tokens=tokens, masked=lengths is not None, numpy=numpy)

    def results(self, batch: Batch, found: Sequence[Mapping[str, Int]]) -> Any:
        """What `IntegerModule.forward` returns, from the output tensors of every sequence.

        What stands at the padding is zero.
        """
        lengths = batch.lengths
        padded = {}
        for name in {output.tensor for output in self.module.graph.outputs}:
            whole = np.zeros((len(found), batch.tokens, found[0][name].shape[1]), np.int64)
            for b, (tensors, length) in enumerate(zip(found, lengths, strict=True)):
                whole[b, :length] = tensors[name]
            padded[name] = torch.from_numpy(whole)
        ends = torch.tensor(lengths) if batch.masked else None
        results = self.module.results(padded, ends)
        if batch.numpy:
            arrays = tuple(result.numpy() for result in results)
            return arrays[0] if len(arrays) == 1 else arrays
        return results[0] if len(results) == 1 else results
