"""How a torch module is called: which of its arguments are inputs, masks and options.

Inputs are integers [B, T] and floats [B, T, C], all with the same B and T. Integers with "position"
in their argument's name are no input: they count from 0. A mask has "mask" in its
argument's name. The mask of the padding is [B, T]: 1 for tokens, or with "padding_mask" in the name
as torch has it, True (or a negative number) for the padding. A mask of attention is [T, T] and says
for all sequences alike what each token sees. Options are everything else: None, booleans, numbers
and strings.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from systolith.quant.capture_values import CaptureError
from systolith.quant.network import TOKENS

Option = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of one call by name, sorted by what they are; ``length``: T.

    ``padding``: masks of the padding, bool [B, T], True for tokens. ``tensors``: everything
    but the options, as the caller gave it and in his order.
    """

    tensors: dict[str, Tensor]
    inputs: dict[str, Tensor]
    padding: dict[str, Tensor]
    attention: dict[str, Tensor]
    options: dict[str, Option]
    length: int

    def lengths(self) -> Tensor | None:
        """Tokens of each sequence, int64 [B], the rest is padding on the right; None without a
        mask."""
        lengths = None
        for name, mask in self.padding.items():
            found = mask.long().sum(dim=1)
            if not torch.equal(mask, torch.arange(self.length) < found[:, None]):
                raise CaptureError(f"{name}: the padding must stand on the right of each sequence")
            if not found.all():
                raise CaptureError(f"{name}: sequence {int(found.argmin())} has no token")
            if lengths is not None and not torch.equal(lengths, found):
                raise CaptureError("The masks of the padding must agree ("
                                   f"{', '.join(self.padding)}): all inputs share one length for "
                                   "each sequence")
            lengths = found
        return lengths


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """The names of the arguments that a module takes, in their order."""
    wanted = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(name for name, p in inspect.signature(module.forward).parameters.items()
                 if p.kind in wanted)


def called(module: nn.Module, example: Any) -> Call:
    """A batch as a call of a module: a tensor, a tuple of positional arguments or a dictionary."""
    parameters = parameters_of(module)
    if isinstance(example, Tensor | np.ndarray):
        example = (example,)
    if isinstance(example, Mapping):
        everything = inspect.signature(module.forward).parameters.values()
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in everything):
            for name in example:
                if name not in parameters:
                    raise CaptureError(f"The module takes no argument {name!r}; it takes "
                                       f"{', '.join(parameters)}")
        return call_of(example)
    if isinstance(example, tuple | list):
        return call_of(by_position(parameters, example))
    raise CaptureError("A batch must be a tensor, a tuple or a dictionary of tensors, not "
                       f"{type(example).__name__}")


def by_position(parameters: tuple[str, ...], values: Any) -> dict[str, Any]:
    """Positional arguments by name."""
    if len(values) > len(parameters):
        raise CaptureError(f"The batch has {len(values)} tensors, the module takes at most "
                           f"{len(parameters)}")
    return dict(zip(parameters, values, strict=False))


def call_of(arguments: Mapping[str, Any]) -> Call:
    """Arguments by name, sorted; raises `CaptureError` where one is nothing of what there is."""
    arguments = {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v
                 for n, v in arguments.items()}
    tensors = {n: v for n, v in arguments.items() if isinstance(v, Tensor)}
    options = {n: v for n, v in arguments.items() if not isinstance(v, Tensor)}
    for name, value in options.items():
        if not isinstance(value, Option):
            raise CaptureError(f"The input {name!r} is no tensor; a batch holds integer [B, T] and "
                               "float [B, T, C] tensors")
    masks = {n: v for n, v in tensors.items() if "mask" in n}
    positions = {n: v for n, v in tensors.items()
                 if "position" in n and not v.is_floating_point() and n not in masks}
    inputs = {n: v for n, v in tensors.items() if n not in masks and n not in positions}
    for name, value in inputs.items():
        if value.dim() != (3 if value.is_floating_point() else 2) or not value.numel():
            raise CaptureError(f"The input {name!r} is of shape {list(value.shape)}; a batch holds "
                               "integer [B, T] and float [B, T, C] tensors, and is not empty")
    if not inputs:
        raise CaptureError("The batch holds no tensor that is an input")
    shapes = {n: tuple(v.shape[:2]) for n, v in inputs.items()}
    size = next(iter(shapes.values()))
    for name, shape in shapes.items():
        if shape != size:
            raise CaptureError(
                "All inputs of a batch must have the same number of sequences and the same length "
                f"(a memory that is read by cross-attention, too): {next(iter(shapes))!r} has "
                f"{list(size)}, {name!r} has {list(shape)}")
    for name, value in positions.items():
        if value.dim() != 2 or not bool((value == torch.arange(size[1])).all()):
            raise CaptureError(f"{name!r} must be [B, T] and count from 0 in each sequence; the "
                               "machine knows no other positions")
    padding, attention = {}, {}
    for name, mask in masks.items():
        if tuple(mask.shape) == (size[1], size[1]) and not (
                tuple(mask.shape) == size and _names_padding(name, mask)):
            attention[name] = mask
        elif tuple(mask.shape) == size:
            padding[name] = _tokens(name, mask)
        else:
            raise CaptureError(f"The mask {name!r} is of shape {list(mask.shape)}; a mask of the "
                               f"padding is {list(size)} here, one of attention "
                               f"{[size[1], size[1]]}")
    return Call(tensors=tensors, inputs=inputs, padding=padding, attention=attention,
                options=options, length=size[1])


def _names_padding(name: str, mask: Tensor) -> bool:
    """Whether a square mask is one of padding, where there are as many sequences as tokens."""
    return "padding" in name or "attention_mask" in name or _corners(mask) is None


def _tokens(name: str, mask: Tensor) -> Tensor:
    """Where tokens are, bool [B, T]."""
    if "padding_mask" in name:
        return ~mask if mask.dtype == torch.bool else mask == 0
    return mask != 0


def _corners(mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """What a mask of attention holds on and below its diagonal, and above; None if that is more
    than one value each."""
    below, above = mask[0, 0], mask[0, -1]
    same = torch.equal(mask, torch.where(torch.ones_like(mask, dtype=torch.bool).tril(), below,
                                         above))
    return (below, above) if same else None


def resized(name: str, mask: Tensor, length: int) -> Tensor:
    """A mask of attention for another length, [length, length]: causal or the same everywhere."""
    corners = _corners(mask)
    if corners is None:
        raise CaptureError(f"The mask {name!r} is neither causal nor the same for all tokens; the "
                           "machine has no other masks of attention")
    return torch.where(torch.ones(length, length, dtype=torch.bool).tril(), *corners)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """How a quantized model is called: like the module that it was made from.

    ``parameters``: names of positional arguments, in order; ``names``: of the network's inputs, by
    those arguments that have another name; ``ignored``: arguments that nothing depends on;
    ``attention`` and ``options``: what the module was captured with, which no call can change.
    """

    parameters: tuple[str, ...] = (TOKENS, "attention_mask")
    names: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    attention: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)

    def read(self, values: tuple[Any, ...], named: Mapping[str, Any]
             ) -> tuple[dict[str, Tensor], Tensor | None]:
        """A call's inputs by the network's names, and the lengths of its sequences [B].

        An argument may have its name in the module or in the network. Raises `CaptureError`.
        """
        arguments = by_position(self.parameters, values)
        for name in named:
            if name in arguments:
                raise CaptureError(f"The argument {name!r} is given twice")
        call = call_of({n: v for n, v in (arguments | dict(named)).items() if v is not None})
        for name, mask in call.attention.items():
            known = self.attention.get(name)
            if known is None or not torch.equal(mask, resized(name, known, call.length)):
                raise CaptureError(f"The mask {name!r} is another than the model was captured with")
        for name, value in call.options.items():
            if name not in self.options or self.options[name] != value:
                raise CaptureError(f"{name}={value!r} is not what the model was captured with")
        return self.renamed(call), call.lengths()

    def renamed(self, call: Call) -> dict[str, Tensor]:
        """The inputs of a call by the network's names."""
        return {self.names.get(name, name): value for name, value in call.inputs.items()
                if name not in self.ignored}

    def argument(self, name: str) -> str:
        """What the caller calls an input of the network."""
        return next((a for a, n in self.names.items() if n == name), name)
