"""From any torch module to a `Network`: exported, interpreted, and compared with the module.

`torch.export` writes down what the module does for sequences of a fixed length; `capture_trace`
runs that with abstract values, so that everything which depends on positions alone (masks, rotary
tables, position embeddings) is computed, and `capture_builder` writes the operations down.

The network computes each sequence alone: masks of the padding are taken to be all ones.
"""

import contextlib
import inspect
import io
import logging
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from systolith.quant.capture_builder import Builder
from systolith.quant.capture_recognize import unit_length
from systolith.quant.capture_trace import MOVES, SAME, Tracer
from systolith.quant.capture_values import (
    CaptureError,
    Formula,
    Index,
    Place,
    Pooled,
    Value,
    operator_name,
)
from systolith.quant.network import TOKENS, Network, Output, Source

LONGEST = 2048
"""Longest sequence for which a module is captured unless the caller asks for more."""
BATCH = 2
COMPARED = 128
"""Tokens of a sequence for which module and network are compared."""
TOLERANCE = 1e-3
"""Largest difference between module and network, relative to the largest result."""
NOWHERE = Place("", Source())


def capture(module: nn.Module, example: Any, *, context: int | None = None, fixed: bool = False
            ) -> Network:
    """The network that a module computes.

    ``example``: one calibration batch, as the module is called: a tensor, a tuple of positional
    arguments or a dictionary of keyword arguments; tensors are int [B, T] or float [B, T, C].
    ``context``: longest sequence; otherwise the module's own limit
    (``config.max_position_embeddings``, ``n_positions`` or ``max_seq_len``), at most `LONGEST`,
    or the example's length. ``fixed``: the module takes no batch but those of the example's shape.

    Integer inputs that embeddings read become index inputs (the first, or ``input_ids``, is called
    "tokens"); float inputs become `Given`; other integer inputs are padding masks, taken as ones,
    and ``position_ids`` count from 0. Outputs are the tensors of the module's result, in order.
    The result is compared with the module's on the example before it is returned. Raises
    `CaptureError`.
    """
    inputs, example_length = named_inputs(module, example)
    length = example_length if fixed else context or _limit(module, example_length)
    if length < 2:
        raise CaptureError(f"The context must be at least 2 tokens, not {length}")
    batch = len(next(iter(inputs.values()))) if fixed else BATCH
    arguments = {name: _sized(name, value, batch, length) for name, value in inputs.items()}
    wrapper = _Traced(module, list(arguments))
    training = {m: m.training for m in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        module.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            compared = length if fixed else COMPARED
            few = {n: v[:, :compared].contiguous() for n, v in arguments.items()}
            expected = _run(wrapper, few)
            program = _export(wrapper, arguments)
        network, names = _interpret(program, arguments, batch, length)
        _compare(network, names, few, expected)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for m, flag in training.items():
            m.training = flag
    return network


class _Traced(nn.Module):
    """The module called with its arguments by position; its result as a flat tuple of tensors."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module = module
        self.names = names
        parameters = inspect.signature(module.forward).parameters
        # A cache of keys is a result that nobody captures.
        self.options = {"use_cache": False} if "use_cache" in parameters else {}

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, values, strict=True))
        return tuple(_tensors(self.module(**named, **self.options)))


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return [t for r in result for t in _tensors(r)]
    return []


def named_inputs(module: nn.Module, example: Any) -> tuple[dict[str, Tensor], int]:
    """The tensors of a batch by the names of the module's arguments, and their length T."""
    parameters = list(inspect.signature(module.forward).parameters)
    if isinstance(example, Tensor):
        example = (example,)
    if isinstance(example, Mapping):
        unknown = [name for name in example if name not in parameters]
        if unknown and not any(
                p.kind is p.VAR_KEYWORD
                for p in inspect.signature(module.forward).parameters.values()):
            raise CaptureError(f"The module takes no argument {unknown[0]!r}; it takes "
                               f"{', '.join(parameters)}")
        inputs = {name: v for name, v in example.items() if v is not None}
    elif isinstance(example, tuple | list):
        if len(example) > len(parameters):
            raise CaptureError(f"The batch has {len(example)} tensors, the module takes at most "
                               f"{len(parameters)}")
        inputs = dict(zip(parameters, example, strict=False))
    else:
        raise CaptureError("A batch must be a tensor, a tuple or a dictionary of tensors, not "
                           f"{type(example).__name__}")
    for name, value in inputs.items():
        wanted = isinstance(value, Tensor) and (
            value.dim() == 3 if value.is_floating_point() else value.dim() == 2)
        if not wanted and not (isinstance(value, Tensor) and "mask" in name and value.dim() == 2):
            shape = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else "no tensor"
            raise CaptureError(f"The input {name!r} is {shape}; a batch holds integer [B, T] and "
                               "float [B, T, C] tensors")
    if not inputs:
        raise CaptureError("The batch holds no tensor")
    shapes = {tuple(value.shape[:2]) for value in inputs.values()}
    if len(shapes) > 1:
        raise CaptureError("The tensors of a batch must have the same sequences and length, not "
                           + " and ".join(str(list(s)) for s in sorted(shapes)))
    return inputs, next(iter(shapes))[1]


def _limit(module: nn.Module, length: int) -> int:
    config = getattr(module, "config", None)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        limit = getattr(config, name, None)
        if isinstance(limit, int):
            return min(limit, LONGEST)
    return length


def _sized(name: str, value: Tensor, batch: int, length: int) -> Tensor:
    """An input for a batch of sequences of a length: the example's, repeated or cut."""
    if "padding_mask" in name and value.dtype == torch.bool:  # torch's: True is padding
        return torch.zeros(batch, length, dtype=value.dtype)
    if "mask" in name:
        return torch.ones(batch, length, dtype=value.dtype)
    if "position" in name and not value.is_floating_point():
        return torch.arange(length).expand(batch, -1).to(value.dtype).contiguous()
    row = torch.arange(batch) % len(value)
    # The rows of the batch start differently even if the example has one.
    column = (torch.arange(length) + torch.arange(batch)[:, None] * (len(value) == 1))
    return value[row[:, None], column % value.shape[1]].contiguous()


def _run(wrapper: _Traced, arguments: dict[str, Tensor]) -> tuple[Tensor, ...]:
    try:
        return wrapper(*arguments.values())
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"The module cannot be run on the batch: {_first_line(error)} "
                           f"({_origin(error)})") from error


def _export(wrapper: _Traced, arguments: dict[str, Tensor]) -> Any:
    # torch prints pages about what the error below says in a sentence.
    pages = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("torch.fx", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with contextlib.redirect_stdout(pages), contextlib.redirect_stderr(pages):
            return torch.export.export(wrapper, tuple(arguments.values()), strict=False)
    except Exception as error:
        text = f"{type(error).__name__} {error}"
        if "data-dependent" in text or "DataDependent" in text or "Dynamic" in text or (
                "symbolic" in text):
            raise CaptureError("The module decides by the values of its tensors what to compute; "
                               "that cannot be captured: use torch.where or a fixed rule "
                               f"({_origin(error)})") from error
        raise CaptureError(f"torch.export cannot trace the module: {_first_line(error)} "
                           f"({_origin(error)})") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _origin(error: Exception) -> str:
    """The innermost line of user code that an exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if "/torch/" not in f.filename
               and "quant/capture" not in f.filename]
    return f"{outside[-1].filename}:{outside[-1].lineno}" if outside else "unknown place"


def _interpret(program: Any, arguments: dict[str, Tensor], batch: int, length: int
               ) -> tuple[Network, dict[str, str]]:
    """The network, and for each of its inputs the module's argument."""
    builder = Builder(batch, length)
    graph = program.graph_module
    signature = program.graph_signature
    constants = dict(program.state_dict) | dict(program.constants)
    stored = {spec.arg.name: spec.target for spec in signature.input_specs}
    nodes = [n for n in graph.graph.nodes if n.op == "placeholder"]
    user = [n for n in nodes if n.name in signature.user_inputs]
    argument = dict(zip(user, arguments, strict=True))
    read = [n for n in user if not arguments[argument[n]].is_floating_point()
            and "mask" not in argument[n] and "position" not in argument[n]
            and _feeds_embedding(n)]
    main = next((n for n in read if argument[n] in (TOKENS, "input_ids")), next(iter(read), None))
    names: dict[str, str] = {}
    values: list[Any] = []
    for node in nodes:
        if node not in argument:
            constant = constants[stored[node.name]]
            values.append(constant.detach() if isinstance(constant, Tensor) else constant)
            continue
        name = argument[node]
        tensor = arguments[name]
        if node in read:
            index = TOKENS if node is main else name
            names[index] = name
            values.append(Index(index, torch.arange(batch * length).view(batch, length)))
        elif tensor.is_floating_point() and "mask" not in name:
            names[name] = name
            values.append(builder.given(name, tensor.shape[2], Place(name, Source())))
        else:
            values.append(tensor)
    if not names:
        raise CaptureError("No input of the module can be recognized: none is float [B, T, C], "
                           "and no embedding reads an integer one")
    results = Tracer(builder).run(graph, values)
    network = builder.network([_output(builder, r) for r in results], length)
    arguments = {index: name for index, name in names.items() if index != name}
    return replace(network, arguments=arguments), names


def _feeds_embedding(node: Any) -> bool:
    """Whether the integers of an input reach an embedding as its index."""
    for user in node.users:
        name = operator_name(user.target) if user.op == "call_function" else ""
        if name == "embedding" and user.args[1] is node:
            return True
        if (name in MOVES or name in SAME) and _feeds_embedding(user):
            return True
    return False


def _output(builder: Builder, value: Any) -> Output:
    """A result of the module as an output of the network."""
    if not isinstance(value, Value):
        raise CaptureError("A result of the module does not depend on its inputs")
    place = value.place if isinstance(value, Formula) else NOWHERE
    normalize = False
    if isinstance(value, Formula) and unit_length(value):
        value, normalize = value.base, True
    batch, length = builder.batch, builder.length
    if isinstance(value, Pooled):
        x = builder.tensor(value.first, NOWHERE)
        if not normalize and abs(value.factor * length - 1) > 1e-6:
            raise CaptureError("A result is a sum over the tokens; only their mean can be one")
        pool = "mean"
    else:
        x = builder.tensor(value, place)
        pool = "none" if len(x.shape) == 3 else ""
    channels = builder.channels[x.x]
    if pool == "none" and (x.terms[0].labels is None or (
            x.shape == (batch, length, channels)
            and torch.equal(x.labels, builder.whole(x.x).labels))):
        return Output(x=x.x, normalize=normalize)
    labels = builder.whole(x.x).labels
    if x.shape == (batch, channels):
        if torch.equal(x.labels, labels[:, 0]):
            return Output(x=x.x, pool=pool or "first", normalize=normalize)
        if torch.equal(x.labels, labels[:, -1]):
            return Output(x=x.x, pool="last", normalize=normalize)
    raise CaptureError(f"A result of shape {list(value.shape)} is neither all tokens of a tensor "
                       "nor its first, its last or the mean of them")


def _compare(network: Network, names: dict[str, str], arguments: dict[str, Tensor],
             expected: tuple[Tensor, ...]) -> None:
    """Whether the network computes what the module does, here on the example."""
    results = network.results(network.run({n: arguments[a] for n, a in names.items()}))
    for i, (ours, theirs) in enumerate(zip(results, expected, strict=True)):
        theirs = theirs.float()
        size = max(float(theirs.abs().max()), 1e-12)
        difference = float((ours - theirs).abs().max()) / size
        if not difference <= TOLERANCE:
            raise CaptureError(f"The captured network is not the module: result {i} differs by "
                               f"{difference:.1e} of its largest value; the module probably "
                               "does something with its inputs or their shape that a network "
                               "cannot express")


__all__ = ["CaptureError", "capture"]
