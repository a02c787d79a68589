"""From any torch module to a `Network`: exported, interpreted, and compared with the module.

`torch.export` writes down what the module does for sequences of a fixed length; `capture_trace`
runs that with abstract values, so that everything which depends on positions alone (masks, rotary
tables, position embeddings) is computed, and `capture_builder` writes the operations down.

The network computes each sequence alone: masks of the padding are taken to be all ones.
"""

import contextlib
import io
import logging
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer

from systolith.quant.calling import Call, called, parameters_of, resized
from systolith.quant.capture_builder import Builder
from systolith.quant.capture_recognize import unit_length
from systolith.quant.capture_trace import MOVES, SAME, Tracer
from systolith.quant.capture_values import (
    OURS,
    CaptureError,
    Formula,
    Index,
    Place,
    Pooled,
    Value,
    counted,
    leaves,
    of_user,
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


def capture(module: nn.Module, example: Any, *, context: int | None = None, fixed: bool = False
            ) -> Network:
    """The network that a module computes.

    ``example``: one calibration batch, as the module is called: a tensor, a tuple of positional
    arguments or a dictionary of keyword arguments (see `calling`); or a `Call`.
    ``context``: longest sequence; otherwise the module's own limit
    (``config.max_position_embeddings``, ``n_positions`` or ``max_seq_len``), at most `LONGEST`,
    or the example's length. ``fixed``: the module takes no batch but those of the example's shape.

    Integer inputs that embeddings read become index inputs (the first, or ``input_ids``, is called
    "tokens"); float inputs become `Given`; masks of the padding show all tokens, and
    ``position_ids`` count from 0. Outputs are the tensors of the module's result, in order. The
    result is compared with the module's on the example, and on a shorter part of it if the module
    takes that, before it is returned. Raises `CaptureError`.

    Limits: all inputs share one length T, also a memory that is read by cross-attention; masks of
    attention are causal or none; parameters are float32.
    """
    call = example if isinstance(example, Call) else called(module, example)
    length = call.length if fixed else context or _limit(module, call.length)
    if length < 2:
        raise CaptureError(f"The context must be at least 2 tokens, not {length}")
    _check_parameters(module)
    batch = len(next(iter(call.inputs.values()))) if fixed else BATCH
    arguments = _arguments(call, batch, length)
    wrapper = _Traced(module, list(arguments), call.options)
    with _as_captured(module):
        with torch.no_grad():
            compared = length if fixed else min(length, COMPARED)
            few = _arguments(call, batch, compared)
            with _refusing_recurrence(module):
                expected = _run(wrapper, few)
            program = _export(wrapper, arguments)
        network, names = _interpret(program, arguments, batch, length)
        _compare(network, names, few, expected)
        if not fixed:
            _compare_shorter(wrapper, network, names, _arguments(call, batch, -(-compared // 3)))
    return network


@contextlib.contextmanager
def _as_captured(module: nn.Module) -> Iterator[None]:
    """The module in evaluation, without torch's shortcuts, which hide what is computed."""
    training = {m: m.training for m in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    hint = transformer._detect_is_causal_mask
    try:
        module.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        # Whether a mask is causal decides there which kernel is called, and nothing else.
        transformer._detect_is_causal_mask = lambda mask, is_causal, size: is_causal is True
        yield
    finally:
        transformer._detect_is_causal_mask = hint
        torch.backends.mha.set_fastpath_enabled(fast)
        for m, flag in training.items():
            m.training = flag


class _Traced(nn.Module):
    """The module called with its arguments by position; its result as a flat tuple of tensors."""

    def __init__(self, module: nn.Module, names: list[str], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.names = names
        # A cache of keys is a result that nobody captures.
        uncached = {"use_cache": False} if "use_cache" in parameters_of(module) else {}
        self.options = dict(options) | uncached

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


def _limit(module: nn.Module, length: int) -> int:
    config = getattr(module, "config", None)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        limit = getattr(config, name, None)
        if isinstance(limit, int):
            return min(limit, LONGEST)
    return length


def _check_parameters(module: nn.Module) -> None:
    for name, p in module.named_parameters():
        if p.is_floating_point() and p.dtype != torch.float32:
            raise CaptureError(f"The parameter {name!r} is {str(p.dtype).removeprefix('torch.')}; "
                               "give the model in float32: model.float()")


def _arguments(call: Call, batch: int, length: int) -> dict[str, Tensor]:
    """What a module is called with for a batch of sequences of a length: the example's inputs,
    repeated or cut, without padding."""
    return {name: _sized(name, value, call, batch, length) for name, value in call.tensors.items()}


def _sized(name: str, value: Tensor, call: Call, batch: int, length: int) -> Tensor:
    if name in call.attention:
        return resized(name, value, length)
    if name in call.padding:  # torch's "padding_mask" is True at the padding
        none = torch.zeros if "padding_mask" in name else torch.ones
        return none(batch, length, dtype=value.dtype)
    if "position" in name and not value.is_floating_point():
        return torch.arange(length).expand(batch, -1).to(value.dtype).contiguous()
    row = torch.arange(batch) % len(value)
    # The rows of the batch start differently even if the example has one.
    column = (torch.arange(length) + torch.arange(batch)[:, None] * (len(value) == 1))
    return value[row[:, None], column % value.shape[1]].contiguous()


def _run(wrapper: _Traced, arguments: dict[str, Tensor]) -> tuple[Tensor, ...]:
    try:
        results = wrapper(*arguments.values())
    except CaptureError:
        raise
    except Exception as error:
        if isinstance(error, IndexError) and "in self" in str(error):
            raise CaptureError("An integer of the batch is out of the range of its embedding "
                               f"({_origin(error)})") from error
        raise CaptureError(f"The module cannot be run on the batch: {_first_line(error)} "
                           f"({_origin(error)})") from error
    if not results:
        raise CaptureError("The module's result holds no tensor")
    return results


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
    return (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")


def _origin(error: Exception) -> str:
    """The innermost line of user code that an exception passed."""
    return _innermost(traceback.extract_tb(error.__traceback__))


def _innermost(frames: list[traceback.FrameSummary]) -> str:
    """Of the frames within the module: the innermost of user code, else of torch's."""
    start = max((i + 1 for i, f in enumerate(frames) if f.filename.startswith(OURS)), default=0)
    library = sysconfig.get_paths()["stdlib"]
    within = [f for f in frames[start:] if f.filename != f"{library}/contextlib.py"]
    chosen = [f for f in within if of_user(f.filename)] or within
    return f"{chosen[-1].filename}:{chosen[-1].lineno}" if chosen else "unknown place"


@contextlib.contextmanager
def _refusing_recurrence(module: nn.Module) -> Iterator[None]:
    """LSTMs and their like are refused when they are called: torch.export may stumble over them
    before it reaches an operator that could be named."""
    def refuse(inner: nn.Module, args: Any) -> None:
        path = next(name for name, m in module.named_modules() if m is inner)
        raise CaptureError(f"The operator {inner._get_name().lower()} is not supported "
                           f"({path}, {_innermost(traceback.extract_stack()[:-1])})")

    hooks = [m.register_forward_pre_hook(refuse) for m in module.modules()
             if isinstance(m, nn.RNNBase)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _interpret(program: Any, arguments: dict[str, Tensor], batch: int, length: int
               ) -> tuple[Network, dict[str, str]]:
    """The network, and for each of its inputs the module's argument."""
    builder = Builder(batch, length)
    tracer = Tracer(builder)
    graph = program.graph_module
    graph.graph.eliminate_dead_code()
    signature = program.graph_signature
    constants = dict(program.state_dict) | dict(program.constants)
    stored = {spec.arg.name: spec.target for spec in signature.input_specs}
    nodes = [n for n in graph.graph.nodes if n.op == "placeholder"]
    given = [n for n in nodes if n.name in signature.user_inputs]
    argument = dict(zip(given, arguments, strict=True))
    read = [n for n in given if not arguments[argument[n]].is_floating_point()
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
            values.append(Index(index, counted(batch * length).view(batch, length)))
        elif tensor.is_floating_point() and "mask" not in name:
            names[name] = name
            builder.given(name, tensor.shape[2], Place(name, Source()))
            values.append(builder.whole(name))
        else:
            if node.users and "mask" not in name and "position" not in name:
                user = next(iter(node.users))
                raise tracer.place(user).error(
                    f"{operator_name(user.target)} reads the integer input {name!r}; only an "
                    "embedding can")
            values.append(tensor)
    if not names:
        raise CaptureError("No input of the module can be recognized: none is float [B, T, C], "
                           "and no embedding reads an integer one")
    results = tracer.run(graph, values)
    end = next(n for n in reversed(graph.graph.nodes) if n.op == "output")
    places = [tracer.place(n) for n in leaves(end.args[0])]
    outputs = [_output(builder, r, p) for r, p in zip(results, places, strict=True)]
    network = builder.network(outputs, length)
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


def _output(builder: Builder, value: Any, place: Place) -> Output:
    """A result of the module as an output of the network."""
    if not isinstance(value, Value):
        raise place.error("A result of the module does not depend on its inputs")
    normalize = False
    if isinstance(value, Formula) and unit_length(value):
        value, normalize = value.base, True
    batch, length = builder.batch, builder.length
    if isinstance(value, Pooled):
        x = builder.tensor(value.first, place)
        if not normalize and abs(value.factor * length - 1) > 1e-6:
            raise place.error("A result is a sum over the tokens; only their mean can be one")
        pool = "mean"
    else:
        x = builder.tensor(value, place)
        pool = "none" if len(x.shape) == 3 else ""
    channels = builder.channels[x.x]
    if pool == "none" and x.shape == (batch, length, channels) and x.terms[0].labels is None:
        return Output(x=x.x, normalize=normalize)
    if x.shape == (batch, channels):
        first = counted(batch)[:, None] * (length * channels) + counted(channels)
        if torch.equal(x.labels, first):
            return Output(x=x.x, pool=pool or "first", normalize=normalize)
        if torch.equal(x.labels, first + (length - 1) * channels):
            return Output(x=x.x, pool="last", normalize=normalize)
    raise place.error(f"A result of shape {list(value.shape)} is neither all tokens of a tensor "
                      "nor its first, its last or the mean of them")


def _compare(network: Network, names: dict[str, str], arguments: dict[str, Tensor],
             expected: tuple[Tensor, ...]) -> None:
    """Whether the network computes what the module does, here on the example."""
    values = network.run({n: arguments[a] for n, a in names.items()})
    for op in network.ops:
        if not torch.isfinite(values[op.name]).all():
            raise CaptureError(f"The tensor {op.name!r} ({op.source}) is not finite on the batch; "
                               "check the model and its inputs")
    difference = _difference(network.results(values), expected)
    if not difference <= TOLERANCE:
        raise CaptureError(f"The captured network is not the module: a result differs by "
                           f"{difference:.1e} of its largest value; the module probably "
                           "does something with its inputs or their shape that a network "
                           "cannot express")


def _compare_shorter(wrapper: _Traced, network: Network, names: dict[str, str],
                     arguments: dict[str, Tensor]) -> None:
    """The same for sequences that are shorter than those that were captured, if the module takes
    them."""
    try:
        with torch.no_grad():
            expected = wrapper(*arguments.values())
    except Exception:
        return
    results = network.results(network.run({n: arguments[a] for n, a in names.items()}))
    if not _difference(results, expected) <= TOLERANCE:
        length = next(iter(arguments.values())).shape[1]
        raise CaptureError(f"The module computes for {length} tokens something else than for "
                           f"{network.context}: what it does depends on the length of the "
                           "sequences in a way that a network cannot express")


def _difference(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """The largest difference of any result, relative to its largest value."""
    largest = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        size = max(float(b.float().abs().max()), 1e-12)
        largest = max(largest, float((a - b.float()).abs().max()) / size)
    return largest


__all__ = ["CaptureError", "capture"]
