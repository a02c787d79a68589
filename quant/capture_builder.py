"""The network under construction: values become its tensors, and operators its operations."""

from typing import Any

import torch
from torch import Tensor

from systolith.quant.capture_labels import channels_of, equal, expanded, renumbered, unit
from systolith.quant.capture_operations import Operations
from systolith.quant.capture_recognize import normalization, rotation, scalar_function
from systolith.quant.capture_values import (
    LABEL,
    CaptureError,
    Formula,
    Mix,
    Place,
    Pooled,
    Scores,
    Term,
    counted,
    labels_of,
)
from systolith.quant.network import (
    POSITIONS,
    Add,
    Attention,
    Concat,
    Embed,
    Function,
    Linear,
    Multiply,
    Norm,
    Rope,
    Scale,
    Slice,
)


class Builder(Operations):
    """What values become: operations by preliminary names, for B sequences of T tokens."""

    def whole(self, name: str) -> Mix:
        """All of a tensor [B, T, C]."""
        return Mix((self.batch, self.length, self.channels[name]), [Term(name, None)])

    # Values to tensors

    def tensor(self, value: Any, place: Place, role: str = "") -> Mix:
        """The value as elements of one tensor of the network, each as it is.

        All channels of the tensor occur in the value. ``role`` joins the names of operations.
        """
        if isinstance(value, Formula):
            return self.tensor(self._recognized(value), value.place, role)
        if isinstance(value, Scores):
            raise place.error("Attention scores are used for something other than a softmax over "
                              "the keys and a product with the values")
        if isinstance(value, Pooled):
            raise place.error("What follows a mean over the tokens can only be linear, or a "
                              "normalization of the result")
        if not isinstance(value, Mix):
            raise place.error(f"A tensor of the network is needed here, not {kind_of(value)}")
        if value.found is None:
            value.found = self._as_it_is(value, place, role)
        return value.found

    def _as_it_is(self, value: Mix, place: Place, role: str) -> Mix:
        value = self._narrowed(value, place, role)
        if len(value.terms) > 1:
            value = self._rotated(value, place)
        factor = value.factor
        if isinstance(factor, Tensor):
            value = self._channel_factor(value, factor, place)
        elif factor != 1:
            value = Mix(value.shape, [Term(self._scaled(value.x, factor, place),
                                           value.terms[0].labels)])
        return value

    def _in_order(self, value: Mix) -> Mix:
        """The same value, without labels where it is all of a tensor in its order."""
        labels = value.terms[0].labels
        count = self.batch * self.length * self.channels[value.x]
        if len(value.terms) > 1 or labels is None or labels.numel() != count:
            return value
        flat = labels.reshape(-1)
        if int(flat[0]) != 0 or int(flat[-1]) != count - 1 or not torch.equal(flat,
                                                                              counted(count)):
            return value
        return Mix(value.shape, [Term(value.x, None, value.factor)])

    def _narrowed(self, value: Mix, place: Place, role: str) -> Mix:
        """The same elements, of a tensor that has no other channels."""
        value = self._in_order(value)
        if len(value.terms) == 1 and value.terms[0].labels is None:
            return value
        if len({term.x for term in value.terms}) > 1:
            raise place.error("Different tensors are joined in a way that no Concat describes")
        channels = self.channels[value.x]
        labels = [labels_of(term, value.shape) for term in value.terms]
        used = torch.zeros(channels, dtype=torch.bool)
        for label in labels:
            used |= channels_of(label, channels)
        if used.all():
            return value
        chosen = used.nonzero().flatten()
        name = self._chosen(value.x, chosen, place, role)
        new = torch.full((channels,), -1, dtype=LABEL)
        new[chosen] = counted(len(chosen))
        return self._in_order(Mix(value.shape, [
            Term(name, renumbered(label, channels, new, len(chosen)), term.factor)
            for label, term in zip(labels, value.terms, strict=True)]))

    def _chosen(self, x: str, chosen: Tensor, place: Place, role: str) -> str:
        """Some channels of a tensor, in ascending order, as a tensor of their own."""
        op, where = self.ops[x], self.places[x]
        first, count = int(chosen[0]), len(chosen)
        role = role or f"from_{first}"
        if isinstance(op, Linear):
            return self.emit(Linear, where, count, role, x=op.x, weight=op.weight[chosen],
                             bias=None if op.bias is None else op.bias[chosen])
        if isinstance(op, Embed):
            return self.emit(Embed, where, count, role, table=op.table[:, chosen], index=op.index)
        if count != int(chosen[-1]) - first + 1:
            raise place.error("Only contiguous channels can be taken from the result of "
                              f"{type(op).__name__}")
        return self.emit(Slice, place, count, joined("slice", role), x=x, first=first, count=count)

    def _rotated(self, value: Mix, place: Place) -> Mix:
        found = rotation(value, self.channels[value.x], self.length, place)
        name = self.emit(Rope, place, self.channels[value.x], "rope", x=value.x, cos=found.cos,
                         sin=found.sin, head_dim=found.head_dim, pairs=found.pairs)
        return self.tensor(Mix(value.shape, [Term(name, found.labels, found.factor)]), place)

    def _scaled(self, name: str, factor: float, place: Place) -> str:
        """A tensor times a number; a negative one goes into the weights."""
        if factor > 0:
            return self.emit(Scale, place, self.channels[name], "scale", x=name, factor=factor)
        return self._weighted(name, torch.full((self.channels[name],), factor), place)

    def _weighted(self, name: str, gain: Tensor, place: Place) -> str:
        """A tensor times a number for each channel."""
        op, where, suffix = self.ops[name], self.places[name], self.suffixes.get(name, "")
        channels = self.channels[name]
        match op:
            case Linear():
                bias = None if op.bias is None else op.bias * gain
                return self.emit(Linear, where, channels, suffix, x=op.x,
                                 weight=op.weight * gain[:, None], bias=bias)
            case Norm():
                bias = None if op.bias is None else op.bias * gain
                return self.emit(Norm, where, channels, suffix, x=op.x, gain=op.gain * gain,
                                 bias=bias, eps=op.eps, center=op.center)
            case Embed():
                return self.emit(Embed, where, channels, suffix, table=op.table * gain,
                                 index=op.index)
        table = gain.expand(self.length, channels)
        return self._times_table(name, table, place)

    def _times_table(self, name: str, table: Tensor, place: Place) -> str:
        """A tensor times a table [T, C] by positions."""
        channels = self.channels[name]
        rows = self.emit(Embed, place, channels, "positions", table=table.contiguous(),
                         index=POSITIONS)
        return self.emit(Multiply, place, channels, "mul", a=name, b=rows)

    def _channel_factor(self, value: Mix, factor: Tensor, place: Place) -> Mix:
        """One term whose factor is a tensor: uniform, or one number for each channel or position
        and channel."""
        first = float(factor.flatten()[0])
        if bool((factor == first).all()):
            return self.tensor(Mix(value.shape, [Term(value.x, value.terms[0].labels, first)]),
                               place)
        gain, table = self.by_position(value, factor, place, 1.0)
        name = (self._times_table(value.x, table, place) if gain is None
                else self._weighted(value.x, gain, place))
        return Mix(value.shape, [Term(name, value.terms[0].labels)])

    def by_position(self, value: Mix, constant: Tensor, place: Place, neutral: float
                    ) -> tuple[Tensor | None, Tensor]:
        """A constant for each element of a value: one number for each channel [C], or None if
        there is more to it, and the table by positions [T, C]."""
        channels = self.channels[value.x]
        constant = constant.detach().float().expand(value.shape)
        labels = value.labels
        channel = labels % channels
        position = labels.div(channels, rounding_mode="floor") % self.length
        table = torch.full((self.length, channels), neutral)
        table[position.flatten(), channel.flatten()] = constant.flatten()
        if not torch.equal(table[position, channel], constant):
            raise place.error("A constant that differs between the sequences of a batch is added "
                              "or multiplied")
        each = torch.full((channels,), neutral)
        each[channel.flatten()] = constant.flatten()
        return (each if torch.equal(each[channel], constant) else None), table

    # Formulas

    def _recognized(self, formula: Formula) -> Mix:
        if formula.found is None:
            formula.found = self._find(formula)
        return formula.found

    def known(self, formula: Formula) -> bool:
        """Whether the formula, as it is, can become operations."""
        try:
            self._recognized(formula)
        except CaptureError:
            return False
        return True

    def _find(self, formula: Formula) -> Mix:
        place = formula.place
        base = formula.base
        if isinstance(base, Mix):
            found = self._known(formula, base)
            if found is not None:
                return found
        # Not one function of the base: take the last step alone.
        operands = [a for a in formula.args if isinstance(a, Formula | Mix | Pooled)]
        if len(operands) == 2 and formula.kind in ("add", "sub", "mul"):
            return self.combined(formula.kind, operands[0], operands[1], place,
                                 float(formula.kwargs.get("alpha", 1)))
        inner = len(operands) == 1 and (isinstance(operands[0], Formula) or (
            isinstance(operands[0], Mix) and operands[0].factor != 1))
        if isinstance(base, Mix) and inner and not formula.tables():
            x = self.tensor(operands[0], place)
            if formula.kind in ("mul", "div") and operands[0] is formula.args[0]:
                number = float(formula.args[1])
                number = 1 / number if formula.kind == "div" else number
                return Mix(x.shape, [Term(x.x, x.terms[0].labels, number)])
            args = tuple(x if a is operands[0] else a for a in formula.args)
            step = Formula(x, formula.target, args, formula.kwargs, formula.shape, place)
            found = self._known(step, x)
            if found is not None:
                return found
        raise place.error(f"The machine has no operation for {formula.kind} as it is used here; "
                          "known are linear layers, embeddings, attention, LayerNorm, RMSNorm, "
                          "rotary positions, sums, products and the functions of the network")

    def _known(self, formula: Formula, base: Mix) -> Mix | None:
        """A formula as a scalar function or a norm of its base."""
        if formula.shape != base.shape:
            return None
        place = formula.place
        scalar = scalar_function(formula)
        if scalar is not None:
            name, factor = scalar
            x = self.tensor(unit(base), place)
            if name:
                name = self.emit(Function, place, self.channels[x.x], name, x=x.x, function=name)
            return Mix(x.shape, [Term(name or x.x, x.terms[0].labels, factor)])
        norm = normalization(formula)
        if norm is None:
            return None
        x = self._normed(unit(base), place)
        channels = self.channels[x.x]
        name = self.emit(Norm, place, channels, "norm", x=x.x,
                         gain=norm.gain, eps=norm.eps, center=norm.center)
        return Mix(x.shape, [Term(name, x.terms[0].labels)])

    # Operations

    def rows(self, value: Any, place: Place, *, check: bool = True) -> tuple[Mix, Tensor] | None:
        """A value whose last dimension holds channels of one token, and those channels [K].

        The channels are the same for all rows. None (or an error with ``check``) otherwise.
        """
        x = self.tensor(value, place)
        channels = self.channels[x.x]
        if x.terms[0].labels is None and x.shape[-1] == channels:
            return x, counted(channels)
        labels = x.labels
        channel = labels[(0,) * (labels.dim() - 1)] % channels
        token = labels[..., :1].div(channels, rounding_mode="floor")
        if torch.equal(labels, token * channels + channel):
            return x, channel
        if check:
            raise place.error("The last dimension must hold the channels of one token here")
        return None

    def token_shape(self, x: Mix, channels: int, name: str) -> Mix:
        """The tokens of the `rows` x [..., K], for another tensor: [..., channels]."""
        shape = (*x.shape[:-1], channels)
        if x.terms[0].labels is None:
            return Mix(shape, [Term(name, None)])
        token = x.labels[..., :1].div(self.channels[x.x], rounding_mode="floor")
        return Mix(shape, [Term(name, token * channels + counted(channels))])

    def linear(self, value: Any, weight: Tensor, bias: Tensor | None, place: Place,
               suffix: str = "linear") -> Mix | Pooled:
        """``value @ weight.T + bias``."""
        if isinstance(value, Pooled):
            if abs(value.factor * self.length - 1) > 1e-6:
                raise place.error("A linear layer after a sum over the tokens must follow a mean")
            inner = self.linear(value.first, weight, bias, place, suffix)
            return Pooled(inner, value.factor)
        x, channel = self.rows(value, place)
        k = self.channels[x.x]
        if weight.shape[1] != len(channel) or len(channel) != k:
            raise place.error("A linear layer reads the channels of a token in a shape that is "
                              "not its own")
        if not torch.equal(channel, counted(k)):
            weight = weight[:, channel.argsort()]
        weight = weight.detach().float()
        name = self.emit(Linear, place, len(weight), suffix, x=x.x, weight=weight,
                         bias=None if bias is None else bias.detach().float().expand(len(weight)))
        return self.token_shape(x, len(weight), name)

    def norm(self, value: Any, gain: Tensor | None, bias: Tensor | None, eps: float, center: bool,
             size: int, place: Place) -> Mix:
        x = self._normed(value, place)
        channels = self.channels[x.x]
        if size != channels:
            raise place.error("A norm over more than the channels of a token has no operation on "
                              "the machine")
        gain = torch.ones(channels) if gain is None else gain.detach().float()
        name = self.emit(Norm, place, channels, "norm", x=x.x, gain=gain,
                         bias=None if bias is None else bias.detach().float(), eps=eps,
                         center=center)
        return Mix(x.shape, [Term(name, x.terms[0].labels)])

    def _normed(self, value: Any, place: Place) -> Mix:
        """A value whose last dimension holds all channels of a token."""
        rows = self.rows(value, place, check=False)
        if rows is None or not torch.equal(rows[1], counted(self.channels[rows[0].x])):
            raise place.error("A norm over a part of the channels (for instance of each head) has "
                              "no operation on the machine")
        return rows[0]

    def combined(self, kind: str, a: Any, b: Any, place: Place, alpha: float = 1) -> Mix:
        """Sum, difference or product of two values with the same tokens and channels."""
        a = self.tensor(a, place)
        b = self.tensor(b, place)
        if kind == "sub":
            alpha = -alpha
        if kind in ("add", "sub") and alpha != 1:
            b = self.tensor(Mix(b.shape, [Term(b.x, b.terms[0].labels, float(alpha))]), place)
        shape = torch.broadcast_shapes(a.shape, b.shape)
        left, right = (expanded(x, shape) for x in (a, b))
        same = self.channels[a.x] == self.channels[b.x] and equal(left, right)
        if not same:
            raise place.error("A sum or product of two tensors must combine the same tokens and "
                              "channels of both")
        op = Multiply if kind == "mul" else Add
        name = self.emit(op, place, self.channels[a.x], "mul" if kind == "mul" else "add",
                         a=a.x, b=b.x)
        return Mix(shape, [Term(name, left.terms[0].labels)])

    def add_constant(self, value: Any, constant: Tensor, place: Place) -> Mix:
        """A bias (one number a channel) or a table by positions, added."""
        x = self.tensor(value, place)
        shape = torch.broadcast_shapes(x.shape, constant.shape)
        if tuple(shape) != x.shape:
            x = expanded(x, shape)
        channels = self.channels[x.x]
        bias, table = self.by_position(x, constant, place, 0.0)
        op = self.ops[x.x]
        if bias is not None and isinstance(op, Linear | Norm):
            old = op.bias if op.bias is not None else 0
            fields = {"x": op.x, "bias": old + bias}
            fields |= ({"weight": op.weight} if isinstance(op, Linear) else
                       {"gain": op.gain, "eps": op.eps, "center": op.center})
            name = self.emit(type(op), self.places[x.x], channels, self.suffixes[x.x], **fields)
            return Mix(x.shape, [Term(name, x.terms[0].labels)])
        # One table for all constants that follow each other: x + (p + q) for (x + p) + q.
        before = self.ops.get(op.b) if isinstance(op, Add) else None
        if isinstance(op, Add) and isinstance(before, Embed) and before.index == POSITIONS:
            summed = self.emit(Embed, place, channels, "positions", table=before.table + table,
                               index=POSITIONS)
            name = self.emit(Add, place, channels, "add", a=op.a, b=summed)
        else:
            rows = self.emit(Embed, place, channels, "positions", table=table, index=POSITIONS)
            name = self.emit(Add, place, channels, "add", a=x.x, b=rows)
        return Mix(x.shape, [Term(name, x.terms[0].labels)])

    def concat(self, values: list[Any], place: Place) -> Mix:
        """Channels of several tensors of the same tokens, one after the other."""
        parts = [self.rows(value, place) for value in values]
        names = []
        for x, channel in parts:
            if not torch.equal(channel, counted(self.channels[x.x])):
                raise place.error("The parts of a concatenation must be whole tensors")
            names.append(x.x)
        total = sum(self.channels[name] for name in names)
        shown = [self.token_shape(x, 1, x.x) for x, _ in parts]
        if any(s.shape != shown[0].shape or not torch.equal(s.labels, shown[0].labels)
               for s in shown):
            raise place.error("A concatenation must join channels of the same tokens")
        name = self.emit(Concat, place, total, "concat", xs=tuple(names))
        return self.token_shape(parts[0][0], total, name)

    # Attention

    def attention(self, q: Mix, k: Mix, v: Mix, scale: float, causal: bool, place: Place) -> Mix:
        """q [..., T, P], k and v [..., T, P] with the same leading dimensions (heads)."""
        leading = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        heads = []
        for value, role in ((q, "q"), (k, "k"), (v, "v")):
            if role != "v" and value.plain and value.factor != 1 and value.factor > 0:
                scale *= value.factor
                value = unit(value)
            value = self.tensor(value, place, role)
            heads.append((value, *self._heads(expanded(value, (*leading, *value.shape[-2:])),
                                              place)))
        (q, batch, head, p), (k, batch_k, group, p_k), (v, batch_v, group_v, p_v) = heads
        if not (torch.equal(batch, batch_k) and torch.equal(batch, batch_v)
                and torch.equal(group, group_v) and p == p_k == p_v):
            raise place.error("Queries, keys and values must belong to the same sequences and "
                              "have heads of the same size")
        count, kv_count = self.channels[q.x] // p, self.channels[k.x] // p
        if count % kv_count or not torch.equal(group, head // (count // kv_count)):
            raise place.error("Query head h must read key head h // (heads / key heads)")
        name = self.emit(Attention, place, count * p, "attention", q=q.x, k=k.x, v=v.x,
                         heads=count, kv_heads=kv_count, head_dim=p, scale=float(scale),
                         causal=causal)
        token = (batch * self.length)[:, None] + counted(self.length)       # [N, T]
        labels = ((token * count + head[:, None]) * p)[..., None] + counted(p)
        shape = (*leading, self.length, p)
        return Mix(shape, [Term(name, labels.reshape(shape))])

    def _heads(self, value: Mix, place: Place) -> tuple[Tensor, Tensor, int]:
        """Sequence and head of each leading element of [..., T, P], and P."""
        *_, length, p = value.shape
        channels = self.channels[value.x]
        labels = value.labels.reshape(-1, length, p)
        start = labels[:, 0, 0]
        batch = start.div(channels * self.length, rounding_mode="floor")
        first = start % channels
        expected = ((batch * self.length * channels + first)[:, None, None]
                    + counted(length)[:, None] * channels + counted(p))
        if length != self.length or not torch.equal(labels, expected) or (first % p).any():
            raise place.error("Attention must be between all tokens of a sequence, over the "
                              "channels of one head each; a batch has its sequences in the first "
                              "dimension (batch_first)")
        return batch, first // p, p

def joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    return {"Index": "an integer input", "Tensor": "a constant"}.get(
        type(value).__name__, type(value).__name__)
