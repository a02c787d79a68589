"""Rules for what becomes attention: products of queries, keys and values, however written."""

import re
from typing import Any

import torch
from torch import Tensor, fx

from systolith.quant.capture_builder import Builder
from systolith.quant.capture_labels import expanded
from systolith.quant.capture_recognize import MASKED, causality, visible
from systolith.quant.capture_values import (
    Formula,
    Mix,
    Place,
    Scores,
    Term,
    Value,
    labels_of,
    mapped,
)


class AttentionRules:
    """The operators of attention; a method ``_name`` for the operator ``name`` of torch."""

    builder: Builder

    def _matmul(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        a, b = args[:2]
        if isinstance(b, Tensor):
            if b.dim() != 2:
                raise place.error("A product with a constant must be with a matrix")
            return self.builder.linear(a, b.t(), None, place)
        if isinstance(a, Scores):
            return self._weighted_values(a, b, place)
        if isinstance(a, Tensor) or not all(isinstance(v, Mix | Formula) for v in (a, b)):
            raise place.error("A product of a constant matrix with a tensor has no operation on "
                              "the machine")
        q, k = (v if isinstance(v, Mix) else self.builder.tensor(v, place) for v in (a, b))
        return Scores(shape, q, transposed(k), 1.0)

    _bmm = _mm = _matmul

    def _baddbmm(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        bias, a, b = args[:3]
        scores = self._matmul((a, b), {}, shape, place, node)
        if not isinstance(scores, Scores) or not isinstance(bias, Tensor):
            raise place.error("baddbmm is only supported for attention scores and a mask")
        scores = self._scores("mul", scores, kwargs.get("alpha", 1), place)
        return self._scores("add", scores, bias * kwargs.get("beta", 1), place)

    def _einsum(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        """Two operands, brought into the order of a matrix product."""
        equation, operands = args[:2]
        wrong = place.error(f"einsum {equation!r} is no linear layer and no part of attention")
        match = re.fullmatch(r"(\w+),(\w+)->(\w+)", equation.replace(" ", ""))
        if match is None or len(operands) != 2:
            raise wrong
        left, right, out = match.groups()
        a, b = operands
        inner = [c for c in left if c in right and c not in out]
        if len(inner) != 1:
            raise wrong
        shared = [c for c in out if c in left and c in right]
        rows = [c for c in out if c in left and c not in right]
        columns = [c for c in out if c in right and c not in left]
        if isinstance(b, Tensor):
            if shared or out != "".join(rows + columns) or len(columns) != 1:
                raise wrong
            weight = b if right == columns[0] + inner[0] else b.t()
            order = [left.index(c) for c in (*rows, *inner)]
            return self.builder.linear(self._permuted(a, order, place), weight, None, place)
        if isinstance(a, Tensor) or len(rows) != 1 or len(columns) != 1:
            raise wrong
        if isinstance(a, Scores):
            if list(left) != [*shared, *rows, *inner]:
                raise wrong
        else:
            a = self._permuted(a, [left.index(c) for c in (*shared, *rows, *inner)], place)
        b = self._permuted(b, [right.index(c) for c in (*shared, *inner, *columns)], place)
        product = [*shared, *rows, *columns]
        size = tuple(dict(zip(out, shape, strict=True))[c] for c in product)
        result = self._matmul((a, b), {}, size, place, node)
        if product == list(out):
            return result
        return self._permuted(result, [product.index(c) for c in out], place)

    def _permuted(self, value: Any, order: list[int], place: Place) -> Mix:
        if not isinstance(value, Mix):
            if isinstance(value, Scores):
                raise place.error("Attention scores may not be rearranged")
            value = self.builder.tensor(value, place)
        return rearranged(torch.permute, (value, order), {}, [value])

    def _scores(self, kind: str, scores: Any, constant: Any, place: Place) -> Scores:
        """Scores times a number, or plus a mask."""
        number = None if constant is None else uniform(constant)
        if not isinstance(scores, Scores) or constant is None or scores.softmax:
            raise place.error("Attention weights are used for something other than a product "
                              "with the values")
        factor, seen = scores.factor, scores.visible
        if kind in ("mul", "div") and number is not None and seen is None:
            factor = factor * number if kind == "mul" else factor / number
        elif kind == "add":
            more = visible(torch.as_tensor(constant))
            if more is None:
                raise place.error("Only a mask (0 and very negative numbers) can be added to "
                                  "attention scores")
            seen = both(seen, more)
        else:
            raise place.error("Attention scores are changed in a way that the machine has no "
                              "operation for")
        return Scores(scores.shape, scores.q, scores.k, factor, seen)

    def _masked_fill(self, args: tuple, kwargs: dict, shape: Any, place: Place,
                     node: fx.Node) -> Any:
        scores, mask, number = args[:3]
        number = uniform(number)
        if not isinstance(mask, Tensor):
            raise place.error("A mask depends on the data")
        if not isinstance(scores, Scores):
            if not mask.any():
                return scores
            raise place.error("masked_fill is only supported for attention scores")
        if scores.softmax and not mask.any():
            return scores
        if scores.softmax or number is None or number > MASKED:
            raise place.error("Masked attention scores must become -inf or a very negative number")
        return Scores(scores.shape, scores.q, scores.k, scores.factor, both(scores.visible, ~mask))

    def _where(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        mask, a, b = args[:3]
        if not isinstance(mask, Tensor):
            raise place.error("A mask depends on the data")
        if isinstance(a, Value) and not isinstance(b, Value):
            return self._masked_fill((a, ~mask, b), {}, shape, place, node)
        if isinstance(b, Value) and not isinstance(a, Value):
            return self._masked_fill((b, mask, a), {}, shape, place, node)
        if bool(mask.all()) or not bool(mask.any()):
            return a if bool(mask.all()) else b
        raise place.error("where is only supported for masks of attention scores")

    def _softmax(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        scores, dim = args[:2]
        if not isinstance(scores, Scores) or dim not in (-1, len(scores.shape) - 1):
            raise place.error("A softmax is only supported over the keys of attention scores")
        return Scores(scores.shape, scores.q, scores.k, scores.factor, scores.visible, True)

    def _weighted_values(self, scores: Scores, v: Any, place: Place) -> Mix:
        if not scores.softmax:
            raise place.error("Attention needs a softmax between its two products")
        v = v if isinstance(v, Mix) else self.builder.tensor(v, place)
        causal = causality(scores.visible)
        if causal is None:
            raise place.error("Attention must see all tokens, or each token itself and all "
                              "before it; this mask is another")
        factor = scores.factor
        q = scores.q
        if factor < 0:
            q = Mix(q.shape, [Term(t.x, t.labels, -t.factor) for t in q.terms])
        return self.builder.attention(q, scores.k, v, abs(factor), causal, place)

    def _scaled_dot_product_attention(self, args: tuple, kwargs: dict, shape: Any, place: Place,
                                      node: fx.Node) -> Any:
        mask, dropout, causal, scale, grouped = options(
            args[3:], kwargs, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
            enable_gqa=False)
        q, k, v = (a if isinstance(a, Mix) else self.builder.tensor(a, place) for a in args[:3])
        if dropout:
            raise place.error("dropout makes the results random")
        if isinstance(mask, Value):
            raise place.error("A mask depends on the data")
        if isinstance(mask, Tensor) and mask.dtype != torch.bool:
            mask = visible(mask)
            if mask is None:
                raise place.error("Only a mask (0 and very negative numbers) can be added to "
                                  "attention scores")
        size = (q.shape[-2], k.shape[-2])
        if causal:
            mask = both(mask, torch.ones(size, dtype=torch.bool).tril())
        if grouped:
            groups = q.shape[-3] // k.shape[-3]
            k, v = (rearranged(torch.repeat_interleave, (x, groups, -3), {}, [x])
                    for x in (k, v))
        scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        scores = Scores((*shape[:-1], size[1]), q, k, scale, mask, True)
        return self._weighted_values(scores, v, place)


def rearranged(target: Any, args: tuple, kwargs: dict[str, Any], mixes: list[Mix]) -> Any:
    """The operator applied to the labels and factors of every term."""
    count = max(len(m.terms) for m in mixes)
    numbers = {m.factor for m in mixes if m.plain}
    uniform = all(m.plain for m in mixes) and len(numbers) == 1
    results = []
    for i in range(count):
        def labels(a: Any, i: int = i) -> Any:
            return labels_of(a.terms[min(i, len(a.terms) - 1)], a.shape) if isinstance(
                a, Mix) else a

        def factor(a: Any, i: int = i) -> Any:
            if not isinstance(a, Mix):
                return a
            value = a.terms[i].factor if i < len(a.terms) else 0.0
            return torch.as_tensor(value, dtype=torch.float32).expand(a.shape)
        moved = target(*mapped(args, labels), **kwargs)
        factors = mixes[0].factor if uniform else target(*mapped(args, factor), **kwargs)
        results.append((moved, factors))
    x = mixes[0].x
    if isinstance(results[0][0], Tensor):
        return Mix(tuple(results[0][0].shape), [Term(x, m, f) for m, f in results])
    return [Mix(tuple(results[0][0][j].shape),
                [Term(x, m[j], f if uniform else f[j]) for m, f in results])
            for j in range(len(results[0][0]))]


def options(args: tuple, kwargs: dict[str, Any], **defaults: Any) -> tuple[Any, ...]:
    """Optional arguments of an operator, by position or name, in the order of ``defaults``."""
    given = dict(zip(defaults, args, strict=False)) | kwargs
    return tuple((defaults | given)[name] for name in defaults)


def uniform(constant: Any) -> float | None:
    """The number that a constant is everywhere."""
    if isinstance(constant, int | float):
        return float(constant)
    if constant.numel() == 0:
        return None
    first = constant.flatten()[0]
    return float(first) if bool((constant == first).all()) else None


def both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b


def transposed(k: Mix) -> Mix:
    """The last two dimensions exchanged."""
    shape = (*k.shape[:-2], k.shape[-1], k.shape[-2])
    return Mix(shape, [Term(t.x, labels_of(t, k.shape).mT,
                            t.factor.mT if isinstance(t.factor, Tensor) else t.factor)
                       for t in k.terms])


def scores_reshaped(scores: Scores, shape: tuple[int, ...]) -> Scores:
    """Other leading dimensions of scores [..., T, T]."""
    lead = torch.broadcast_shapes(scores.q.shape[:-2], scores.k.shape[:-2])
    seen = scores.visible
    if seen is not None:
        seen = seen.expand(scores.shape).reshape(shape)

    def reshaped(x: Mix) -> Mix:
        x = expanded(x, (*lead, *x.shape[-2:]))
        size = (*shape[:-2], *x.shape[-2:])
        return Mix(size, [Term(t.x, labels_of(t, x.shape).reshape(size),
                               t.factor.reshape(size) if isinstance(t.factor, Tensor)
                               else t.factor) for t in x.terms])
    return Scores(shape, reshaped(scores.q), reshaped(scores.k), scores.factor, seen,
                  scores.softmax)
