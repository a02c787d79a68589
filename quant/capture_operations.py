"""Operations under construction, one after the other, and the names that they end up with.

Names are given at the end, when operations that nobody reads have gone: an operation that is
alone in its module takes the module's path, others a suffix of their kind.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from systolith.quant.capture_values import MOST, Place
from systolith.quant.network import Concat, Given, Network, Op, Output


class Operations:
    """Operations by preliminary names, for B sequences of T tokens."""

    def __init__(self, batch: int, length: int) -> None:
        self.batch = batch
        self.length = length
        self.ops: dict[str, Op] = {}
        self.places: dict[str, Place] = {}
        self.suffixes: dict[str, str] = {}
        self.channels: dict[str, int] = {}

    def emit(self, kind: Callable[..., Op], place: Place, channels: int, suffix: str,
             **fields: Any) -> str:
        """Appends an operation; returns the preliminary name of its tensor."""
        if self.batch * self.length * channels > MOST:
            raise place.error(f"A tensor of {channels} channels and {self.length} tokens is too "
                              "large to be captured; choose a shorter context")
        name = f"%{len(self.ops)}"
        op = kind(name=name, source=place.source, **fields)
        self.ops[name] = op
        self.places[name] = place
        self.suffixes[name] = suffix
        self.channels[name] = channels
        return name

    def given(self, name: str, channels: int, place: Place) -> None:
        """Appends a float input, which keeps its name."""
        self.ops[name] = Given(name=name, source=place.source, channels=channels)
        self.places[name] = place
        self.channels[name] = channels

    def network(self, outputs: list[Output], context: int) -> Network:
        """The operations that the outputs need, under their final names."""
        needed = {output.x for output in outputs}
        for name in reversed(self.ops):
            if name in needed:
                needed.update(self.ops[name].inputs)
        kept = {name: op for name, op in self.ops.items()
                if name in needed or isinstance(op, Given)}
        names = self._names(list(kept))
        ops = []
        for old, op in kept.items():
            fields = {f: names[getattr(op, f)] for f in op.INPUTS}
            if isinstance(op, Concat):
                fields = {"xs": tuple(names[x] for x in op.xs)}
            ops.append(replace(op, name=names[old], **fields))
        ends = tuple(replace(output, x=names[output.x]) for output in outputs)
        return Network(ops=tuple(ops), outputs=ends, context=context)

    def _names(self, kept: list[str]) -> dict[str, str]:
        alone = Counter(self.places[name].path for name in kept)
        taken = {name for name in kept if not name.startswith("%")}
        names = {name: name for name in taken}
        for old in kept:
            if old in names:
                continue
            path, suffix = self.places[old].path, self.suffixes[old]
            name = path if path and alone[path] == 1 else ".".join(filter(None, (path, suffix)))
            unique, number = name, 1
            while unique in taken:
                unique, number = f"{name}_{number}", number + 1
            taken.add(unique)
            names[old] = unique
        return names
