"""Changes a float network's weights, not its function, so that it quantizes well.

The inner product of a query and a key does not notice what happens to both alike: the channels of
a head may be permuted, which brings every network to adjacent pairs, and each pair may be turned by
a fixed angle, which commutes with the rotation of the positions. A factor may move from one weight
through a linear path into the next (SmoothQuant, Xiao et al. 2023), and so may an offset from one
bias into the next (Outlier Suppression+, Wei et al. 2023).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from systolith.quant.calibrate import Inputs, Range
from systolith.quant.network import (
    Attention,
    Function,
    Linear,
    Multiply,
    Network,
    NetworkError,
    Norm,
    Op,
    Rope,
    Scale,
    Slice,
)

ANGLES = 48
"""Angles tried in a quarter turn."""


def _only_reader(network: Network, name: str) -> bool:
    """Whether one operation and no output reads a tensor."""
    return (len(network.consumers(name)) == 1
            and all(output.x != name for output in network.outputs))


def _rows(linear: Linear, change) -> Linear:
    """``change`` applied to the output channels: the first axis of weight and bias."""
    bias = None if linear.bias is None else change(linear.bias.double()).float()
    return replace(linear, weight=change(linear.weight.double()).float(), bias=bias)


def split_slices(network: Network) -> Network:
    """Slices of a Linear become Linears of their own: each gets the precision that it needs."""
    changed: dict[str, Op] = {}
    gone = set()
    outputs = {output.x for output in network.outputs}
    for linear in network.of_kind(Linear):
        readers = network.consumers(linear.name)
        if linear.name in outputs or not readers:
            continue
        if all(isinstance(reader, Slice) for reader in readers):
            gone.add(linear.name)
            for s in readers:
                part = slice(s.first, s.first + s.count)  # type: ignore[attr-defined]
                changed[s.name] = replace(_rows(linear, lambda w, part=part: w[part].clone()),
                                          name=s.name, source=s.source)
    ops = (changed.get(op.name, op) for op in network.ops if op.name not in gone)
    return replace(network, ops=tuple(ops))


def fold_scales(network: Network) -> Network:
    """A Scale that alone reads a Linear becomes part of its weights."""
    for op in tuple(network.of_kind(Scale)):
        linear = network.op(op.x)
        if isinstance(linear, Linear) and _only_reader(network, op.x):
            folded = replace(_rows(linear, lambda w, f=op.factor: w * f), name=op.name)
            network = replace(network, ops=tuple(
                folded if other.name == op.name else other for other in network.ops
                if other.name != op.x))
    return network


def adjacent_pairs(network: Network) -> Network:
    """Every Rope rotates adjacent pairs, the rows of the Linears before it permuted for it."""
    changed: dict[str, Op] = {}
    for rope in network.of_kind(Rope):
        if rope.pairs == "adjacent":
            continue
        linear = network.op(rope.x)
        readers = network.consumers(rope.name)
        scored = all(isinstance(r, Attention) and rope.name != r.v for r in readers)
        if not (isinstance(linear, Linear) and _only_reader(network, rope.x) and scored):
            raise NetworkError(f"{rope.name} ({rope.source}): a rotation of halves must stand "
                               f"between a Linear of its own and attention's query or key")
        order = torch.arange(rope.head_dim).view(2, -1).T.flatten()
        changed[linear.name] = _rows(linear, lambda w, order=order: w.unflatten(
            0, (-1, len(order)))[:, order].flatten(0, 1))
        changed[rope.name] = replace(rope, pairs="adjacent")
    for a in network.of_kind(Attention):
        if (a.q in changed) != (a.k in changed):
            raise NetworkError(f"{a.name}: query and key must be rotated alike")
    return network.with_ops(changed)


def _turnable(network: Network) -> list[tuple[Attention, Rope, Rope, Linear, Linear]]:
    found = []
    for a in network.of_kind(Attention):
        q, k = network.op(a.q), network.op(a.k)
        if not (isinstance(q, Rope) and isinstance(k, Rope)):
            continue
        q_in, k_in = network.op(q.x), network.op(k.x)
        names = (a.q, a.k, q.x, k.x)
        if (isinstance(q_in, Linear) and isinstance(k_in, Linear)
                and all(_only_reader(network, name) for name in names)):
            found.append((a, q, k, q_in, k_in))
    return found


def turn_pairs(
    network: Network, batches: Iterable[tuple[Inputs, Tensor | None]], context: int
) -> Network:
    """Keys need the smallest range that turning their pairs can give.

    A key counts at every position of ``context``, not only where calibration has seen it.
    """
    places = _turnable(network)
    if not places:
        return network
    step = math.pi / 2 / ANGLES
    angles = torch.arange(2 * ANGLES, dtype=torch.float64) * step
    axis = torch.stack((angles.cos(), -angles.sin()))            # first coordinate after a turn
    seen = [torch.zeros(0)] * len(places)
    for inputs, lengths in batches:
        values = network.run(inputs, lengths)
        for i, (_, _, k, _, _) in enumerate(places):
            x = values[k.x]
            if lengths is not None:
                x = x[torch.arange(x.shape[1]) < lengths[:, None]]
            x = x.flatten(0, -2).double().unflatten(1, (-1, 2))
            largest = (x @ axis).abs().amax(dim=0)                               # [pairs, 2A]
            seen[i] = torch.maximum(seen[i], largest) if len(seen[i]) else largest
    changed: dict[str, Op] = {}
    for (a, _, k, q_in, k_in), found in zip(places, seen, strict=True):
        # The second coordinate is the first one a quarter turn earlier.
        found = found.unflatten(-1, (2, ANGLES)).amax(dim=-2)
        found = found.unflatten(0, (a.kv_heads, -1))                             # [G, P/2, A]
        turns = torch.atan2(k.sin[:context].double(), k.cos[:context].double()) / step
        largest = torch.stack([
            torch.stack([found[:, i].roll(-int(n), dims=-1)
                         for n in (turns[:, i].round() % ANGLES).unique()]).amax(dim=0)
            for i in range(a.head_dim // 2)], dim=1)                             # [G, P/2, A]
        best = angles[largest.argmin(dim=-1)]                                    # [G, P/2]

        def turned(w: Tensor, best: Tensor = best) -> Tensor:
            x = w.reshape(len(best), -1, best.shape[1], 2, *w.shape[1:])
            shape = (len(best), 1, best.shape[1], *([1] * (w.dim() - 1)))
            cos, sin = best.cos().view(shape), best.sin().view(shape)
            u, v = x[:, :, :, 0], x[:, :, :, 1]
            return torch.stack((u * cos - v * sin, u * sin + v * cos), dim=3).reshape(w.shape)

        for linear in (q_in, k_in):
            changed[linear.name] = _rows(linear, turned)
    return network.with_ops(changed)


def center(network: Network, ranges: Mapping[str, Range]) -> Network:
    """Channels moved to lie around zero, where that costs nothing.

    Norms, values and functions whose readers are all Linears give up the middle of each channel's
    range (a function has one for all), and the readers' biases take it over: probabilities sum to
    one, so attention passes on what its values lack. What all keys have in common adds the same to
    every score of a row, and softmax does not see it; a rotated key has nothing constant.
    """
    changed: dict[str, Op] = {}
    outputs = {output.x for output in network.outputs}

    def take(readers: Iterable[Op], offset: Tensor) -> None:
        for reader in readers:
            reader = changed.get(reader.name, reader)
            assert isinstance(reader, Linear)
            bias = torch.zeros(len(reader.weight)) if reader.bias is None else reader.bias
            moved = bias.double() + reader.weight.double() @ offset
            changed[reader.name] = replace(reader, bias=moved.float())

    def give(op: Op, offset: Tensor) -> None:
        op = changed.get(op.name, op)
        assert isinstance(op, Linear | Norm)
        bias = torch.zeros(len(offset)) if op.bias is None else op.bias
        changed[op.name] = replace(op, bias=(bias.double() - offset).float())

    def middle(name: str) -> Tensor:
        return torch.from_numpy(ranges[name].middle)

    for op in network.ops:
        readers = network.consumers(op.name)
        linear = bool(readers) and all(isinstance(r, Linear) for r in readers)
        match op:
            case Norm() if linear and op.name not in outputs:
                give(op, middle(op.name))
                take(readers, middle(op.name))
            case Function() if linear and op.name not in outputs:
                seen = ranges[op.name]
                offset = float(seen.low.min() + seen.high.max()) / 2
                changed[op.name] = replace(op, offset=op.offset + offset)
                take(readers, torch.full((len(seen.low),), offset, dtype=torch.float64))
            case Attention():
                key, value = network.op(op.k), network.op(op.v)
                if isinstance(key, Linear) and _only_reader(network, op.k):
                    give(key, middle(op.k))
                passes = linear and op.name not in outputs and _only_reader(network, op.v)
                if passes and isinstance(value, Linear):
                    give(value, middle(op.v))
                    shared = middle(op.v).view(op.kv_heads, 1, op.head_dim)
                    take(readers, shared.expand(-1, op.heads // op.kv_heads, -1).flatten())
    return network.with_ops(changed)


def smooth(network: Network, ranges: Mapping[str, Range], strength: float) -> Network:
    """Outlying channels of matrix products' inputs moved into the weights that read them.

    Channel j is divided by ``max|x_j| ** strength / max|w_j| ** (1 - strength)``, normalised to
    a geometric mean of 1, where what defines it is linear in it: a norm's gain and bias, the
    values of attention, the second factor of a product.
    """
    changed: dict[str, Op] = {}
    outputs = {output.x for output in network.outputs}
    for op in network.ops:
        readers = network.consumers(op.name)
        if op.name in outputs or not readers or not all(isinstance(r, Linear) for r in readers):
            continue
        linears = [changed.get(r.name, r) for r in readers]
        weight = torch.stack([r.weight.abs().amax(dim=0)  # type: ignore[attr-defined]
                              for r in linears]).amax(dim=0).double()
        seen = torch.from_numpy(ranges[op.name].largest)
        groups, kv_heads, head_dim = 1, 1, 1
        source: Op = op
        match op:
            case Norm():
                pass
            case Attention() if _only_reader(network, op.v):
                groups, kv_heads, head_dim = op.heads // op.kv_heads, op.kv_heads, op.head_dim
                source = network.op(op.v)
            case Multiply() if _only_reader(network, op.b):
                source = network.op(op.b)
            case _:
                continue
        if not isinstance(source, Norm | Linear):
            continue
        if groups > 1:
            shape = (kv_heads, groups, head_dim)
            seen, weight = (x.view(shape).amax(dim=1).flatten() for x in (seen, weight))
        seen, weight = (x.clamp(min=float(x.max()) * 1e-4 + 1e-30) for x in (seen, weight))
        factor = seen**strength / weight ** (1 - strength)
        factor = (factor / factor.log().mean().exp()).clamp(1 / 64, 64)
        source = changed.get(source.name, source)
        if isinstance(source, Norm):
            bias = None if source.bias is None else (source.bias / factor).float()
            changed[source.name] = replace(source, gain=(source.gain / factor).float(), bias=bias)
        else:
            assert isinstance(source, Linear)
            changed[source.name] = _rows(source, lambda w, f=factor: w / f.view(
                -1, *[1] * (w.dim() - 1)))
        if groups > 1:
            factor = factor.view(-1, 1, head_dim).expand(-1, groups, -1).flatten()
        for r in readers:
            r = changed.get(r.name, r)
            changed[r.name] = replace(
                r, weight=(r.weight * factor).float())  # type: ignore[attr-defined, call-arg]
    return network.with_ops(changed)
