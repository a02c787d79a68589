"""Static quantization after training: a float Llama and calibration text to an integer graph.

Weights are symmetric int8 with one scale for each output channel. Activations are symmetric with
static ranges: int16 between operations, int16 or int8 where a matrix product reads them, and int8
for keys and values, whose scales may differ from channel to channel at no cost: a channel's scale
of V is undone by the parameters that follow the product with V, that of K by the scale of the same
channel of Q.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray
from torch import Tensor as TorchTensor

from systolith import bounds, fixed, tables
from systolith.errors import UserError
from systolith.graph import (
    MAX_SHIFT,
    Add,
    ArgMax,
    Attention,
    Embedding,
    Graph,
    Linear,
    Multiply,
    Node,
    Norm,
    Output,
    Rope,
    Tensor,
)
from systolith.quant.llama import Llama, rope_tables
from systolith.quant.observe import Range, observe
from systolith.quant.prepare import prepare
from systolith.quant.tokenizer import BOS, EOS

Float = NDArray[np.float64]

CHOOSABLE = ("attention.norm", "attention.q", "attention.context", "ffn.norm", "ffn.product")
"""Tensors of a layer that feed a matrix product, whose bits a recipe chooses; and "norm"."""
FAINTEST = 1 / 64
"""No channel of a cache gets a finer scale than this part of the coarsest one's: a channel that
calibration has hardly seen must not saturate at once."""


class QuantizeError(UserError):
    """A model, recipe or calibration that no integer graph can be made from."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize.

    bits              pairs of a pattern of tensor names and 8 or 16, the last match counts; what
                      no pattern matches has 16. Names are "norm" and, with i the layer,
                      "layers.i." and attention.norm, attention.q, attention.context, ffn.norm,
                      ffn.product: everything that a matrix product reads, but K and V (always 8).
    probability_bits  bits of the attention probabilities, 8 or 16
    cache_scales      how many scales K and V have: one for the "tensor", for each "head" or for
                      each "channel" (pair of channels for K)
    range             of 8-bit tensors: "minmax", or "percentile" to saturate the rarest values
    percentile        part of the values, in percent, that "percentile" does not saturate
    headroom          16-bit tensors can hold this multiple of the largest magnitude seen
    context           longest sequence of the integer model; None for that of the float model
    """

    bits: tuple[tuple[str, int], ...] = ()
    probability_bits: int = 16
    cache_scales: str = "channel"
    range: str = "percentile"
    percentile: float = 99.99
    headroom: float = 2.0
    context: int | None = None

    def __post_init__(self) -> None:
        def check(name: str, good: bool, rule: str) -> None:
            if not good:
                raise QuantizeError(f"{name} must be {rule}, not {getattr(self, name)!r}")

        good = all(isinstance(p, str) and b in (8, 16) for p, b in self.bits)
        check("bits", good, "pairs of a pattern and 8 or 16")
        check("probability_bits", self.probability_bits in (8, 16), "8 or 16")
        check("cache_scales", self.cache_scales in ("tensor", "head", "channel"),
              "one of tensor, head, channel")
        check("range", self.range in ("minmax", "percentile"), "one of minmax, percentile")
        check("percentile", 50 <= self.percentile <= 100, "from 50 to 100")
        check("headroom", 1 <= self.headroom <= 64, "from 1 to 64")
        good = self.context is None or (type(self.context) is int and self.context > 0)
        check("context", good, "a positive integer")

    def activation_bits(self, name: str) -> int:
        """Bits of the tensor ``name``."""
        chosen = 16
        for pattern, value in self.bits:
            if fnmatchcase(name, pattern):
                chosen = value
        return chosen


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """``graph`` and what it was made from.

    ``reference`` is a float model of the original's function with the graph's order of channels:
    ``observe.trace`` of it and ``IntegerModel.trace`` of the graph can be compared name by name.
    """

    graph: Graph
    reference: Llama
    recipe: Recipe


def quantize(
    model: Llama, calibration: Iterable[NDArray[np.int64]], recipe: Recipe | None = None
) -> QuantizedModel:
    """The integer graph of a Llama model.

    ``calibration``: sequences of tokens, each int64 [T], that show the activations' ranges. Raises
    ``QuantizeError`` where the recipe and the model do not fit, or a range is out of reach.
    """
    recipe = recipe or Recipe()
    context = recipe.context or model.config.max_seq_len
    sequences = [np.asarray(tokens, dtype=np.int64)[:context] for tokens in calibration]
    if not sequences:
        raise QuantizeError("Calibration needs at least one sequence of tokens")
    _match_patterns(recipe, model.config.n_layers)
    if context > model.config.max_seq_len:
        raise QuantizeError(f"context must be at most the model's {model.config.max_seq_len}, "
                            f"not {context}")

    def histogram(name: str) -> bool:
        cache = name.endswith(("attention.k", "attention.v"))
        choosable = name == "norm" or name.endswith(CHOOSABLE)
        eight = cache or (choosable and recipe.activation_bits(name) == 8)
        return recipe.range == "percentile" and eight

    reference = prepare(model, sequences, context)
    ranges = observe(reference, sequences, histogram)
    try:
        graph = _Quantizer(reference, ranges, recipe).graph()
    except ValueError as error:
        raise QuantizeError(f"The model cannot be quantized: {error}") from error
    return QuantizedModel(graph=graph, reference=reference, recipe=recipe)


def _match_patterns(recipe: Recipe, layers: int) -> None:
    names = ["norm", *(f"layers.{i}.{name}" for i in range(layers) for name in CHOOSABLE)]
    for pattern, _ in recipe.bits:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise QuantizeError(f"The pattern {pattern!r} matches no tensor whose bits can be "
                                f"chosen; these are norm and layers.i. with "
                                f"{', '.join(CHOOSABLE)}")


def quantize_rows(weight: Float, x_bits: int) -> tuple[NDArray[np.int8], Float]:
    """Weights (N, K) in [-127, 127] and the scale of each row, so that no accumulator overflows.

    Where the largest weights times the largest x of ``x_bits`` bits would pass 32 bits, the row
    uses a smaller range.
    """
    largest = np.abs(weight).max(axis=1)
    scale = np.where(largest > 0, largest / 127, 1.0)
    no_bias = np.zeros(len(weight), dtype=np.int32)
    while True:
        quantized = np.rint(weight / scale[:, None]).astype(np.int8)
        excess = bounds.linear_bound(quantized, no_bias, x_bits) / bounds.LARGEST
        if (excess <= 1).all():
            return quantized, scale
        scale = np.where(excess > 1, scale * excess * 1.001, scale)


def multipliers(ratios: Float) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """`fixed.multiplier` for each channel."""
    pairs = [fixed.multiplier(float(ratio)) for ratio in ratios]
    mult, shift = zip(*pairs, strict=True)
    return np.array(mult, dtype=np.uint16), np.array(shift, dtype=np.uint8)


def signed_gains(ratios: Float) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """For each channel the gain and shift with ``ratio ≈ gain * 2**-shift``, |gain| < 2**15."""
    gains, shifts = [], []
    for ratio in ratios.tolist():
        if not abs(ratio) < (1 << 15) - 0.5:
            raise ValueError(f"a norm's gain must be below 32768 output LSB, not {ratio}")
        shift = min(15 - math.frexp(ratio)[1], MAX_SHIFT)
        if round(abs(ratio) * 2**shift) == 1 << 15:
            shift -= 1
        gains.append(round(ratio * 2**shift))
        shifts.append(shift)
    return np.array(gains, dtype=np.int16), np.array(shifts, dtype=np.uint8)


def _float64(x: TorchTensor) -> Float:
    return x.detach().double().numpy()


class _Quantizer:
    """Builds the graph of one model, node after node."""

    def __init__(self, model: Llama, ranges: dict[str, Range], recipe: Recipe):
        self.model, self.config, self.ranges, self.recipe = model, model.config, ranges, recipe
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, NDArray] = {}

    def graph(self) -> Graph:
        c = self.config
        self._rope_tables()
        table = _float64(self.model.model.embed_tokens.weight)
        # The whole table is known, and its range needs no headroom.
        scale = self._residual_scale(max(np.abs(table).max(), 1e-30) / 32767)
        self._constant("embedding.table", np.rint(table / scale), "int16")
        self._node(Embedding(name="embedding", out="embedding", table="embedding.table"),
                   c.dim, 16, scale)
        x = "embedding"
        for i, block in enumerate(self.model.model.layers):
            x = self._attention(f"layers.{i}.attention", block, x)
            x = self._ffn(f"layers.{i}.ffn", block, x)
        self._norm("norm", x, self.model.model.norm.weight)
        self._linear("logits", "norm", _float64(self.model.classifier()), self._scale("logits", 16))
        self._node(ArgMax(name="token", out="token", x="logits"), 1, 32, 1.0)
        graph = Graph(nodes=tuple(self.nodes), tensors=self.tensors, constants=self.constants,
                      outputs=(Output(tensor="logits"),), context=c.max_seq_len, bos=BOS, eos=EOS)
        bounds.prove(graph)
        return graph

    # Parts of the model ------------------------------------------------------------------------

    def _attention(self, name: str, block, x: str) -> str:
        c, attention = self.config, block.self_attn
        self._norm(f"{name}.norm", x, block.input_layernorm.weight)
        q_scale, k_scale = self._score_scales(name)
        for part, module, heads, scale in (
            ("q", attention.q_proj, c.n_heads, q_scale),
            ("k", attention.k_proj, c.n_kv_heads, k_scale),
        ):
            bits = self.recipe.activation_bits(f"{name}.q") if part == "q" else 8
            # The rotation's rounding takes as many fraction bits away as the range leaves room for.
            # A rotated value can need more range than it had before, and the other way round.
            before = self.ranges[f"{name}.{part}_proj"].largest / 32767
            spare = math.log2(max((scale / np.maximum(before, 1e-30)).min(), 1))
            spare = min(math.floor(spare), 16 - bits)
            self._linear(f"{name}.{part}_proj", f"{name}.norm", _float64(module.weight),
                         scale / 2**spare)
            self._node(Rope(name=f"{name}.{part}", out=f"{name}.{part}", x=f"{name}.{part}_proj",
                            cos="rope.cos", sin="rope.sin", head_dim=c.head_dim, shift=15 + spare),
                       heads * c.head_dim, bits, scale)
        v_scale = self._cache_scale(f"{name}.v", 1)
        self._linear(f"{name}.v", f"{name}.norm", _float64(attention.v_proj.weight), v_scale, 8)
        per_score = float((q_scale * self._per_query(k_scale)).max() / math.sqrt(c.head_dim))
        score_mult, score_shift = fixed.multiplier(per_score * math.log2(math.e) * 65536)
        context = f"{name}.context"
        bits = self.recipe.activation_bits(context)
        scale = self._scale(context, bits)
        p_scale = 1 / (2**self.recipe.probability_bits - 1)
        self._parameters(context, p_scale * self._per_query(v_scale) / scale)
        self._node(Attention(name=context, out=context, q=f"{name}.q", k=f"{name}.k",
                             v=f"{name}.v", bias=f"{context}.bias", mult=f"{context}.mult",
                             shift=f"{context}.shift", heads=c.n_heads, kv_heads=c.n_kv_heads,
                             head_dim=c.head_dim, score_mult=score_mult, score_shift=score_shift,
                             probability_bits=self.recipe.probability_bits),
                   c.dim, bits, scale)
        self._linear(f"{name}.o_proj", context, _float64(attention.o_proj.weight),
                     self._scale(f"{name}.o_proj", 16))
        return self._add(f"{name}.residual", f"{name}.o_proj", x)

    def _ffn(self, name: str, block, x: str) -> str:
        mlp = block.mlp
        self._norm(f"{name}.norm", x, block.post_attention_layernorm.weight)
        scale_in, scale = self._scale(f"{name}.gate_proj", 16), self._scale(f"{name}.gate", 16)
        table = f"{name}.gate.table"
        self._constant(table, tables.function_table(silu, scale_in, scale), "int16")
        self._linear(f"{name}.gate", f"{name}.norm", _float64(mlp.gate_proj.weight), scale_in,
                     table=table, table_scale=scale)
        up_scale = self._scale(f"{name}.up", 16)
        self._linear(f"{name}.up", f"{name}.norm", _float64(mlp.up_proj.weight), up_scale)
        product = f"{name}.product"
        bits = self.recipe.activation_bits(product)
        out_scale = self._scale(product, bits)
        mult, shift = fixed.multiplier(scale * up_scale / out_scale)
        self._node(Multiply(name=product, out=product, a=f"{name}.gate", b=f"{name}.up", mult=mult,
                            shift=shift), self.config.hidden_dim, bits, out_scale)
        self._linear(f"{name}.down", product, _float64(mlp.down_proj.weight),
                     self._scale(f"{name}.down", 16))
        return self._add(f"{name}.residual", f"{name}.down", x)

    # Scales ------------------------------------------------------------------------------------

    def _largest(self, name: str, bits: int) -> Float:
        """The magnitude of each channel that the full range of a tensor has to hold."""
        seen = self.ranges[name]
        if bits == 16:
            return seen.largest * self.recipe.headroom
        if self.recipe.range == "percentile":
            return seen.percentile(self.recipe.percentile)
        return seen.largest

    def _scale(self, name: str, bits: int) -> float:
        """One scale for a whole tensor."""
        largest = float(self._largest(name, bits).max())
        return largest / (2 ** (bits - 1) - 1) if largest > 0 else 1.0

    def _residual_scale(self, scale: float) -> float:
        """A scale coarse enough for the epsilon of the norms, in squared LSB, to be encoded."""
        return max(scale, self.config.dim * math.sqrt(self.config.norm_eps * 2.0**-53))

    def _cache_scale(self, name: str, together: int) -> Float:
        """8-bit scales of K or V, one for each channel; ``together`` neighbours are equal."""
        c = self.config
        largest = self._largest(name, 8)
        together = {"tensor": c.kv_dim, "head": c.head_dim, "channel": together}[
            self.recipe.cache_scales]
        largest = np.repeat(largest.reshape(-1, together).max(axis=1), together)
        largest = np.maximum(largest, largest.max() * FAINTEST)
        return largest / 127 if largest.max() > 0 else np.ones(c.kv_dim)

    def _per_query(self, x: Float) -> Float:
        """Values of the key channels, for the channels of the query heads that they serve."""
        c = self.config
        return np.repeat(x.reshape(c.n_kv_heads, -1), c.n_heads // c.n_kv_heads, axis=0).reshape(-1)

    def _score_scales(self, name: str) -> tuple[Float, Float]:
        """Scales of each channel of q and of k, whose products are all equal."""
        k_scale = self._cache_scale(f"{name}.k", 2)
        opposite = self._per_query(k_scale)
        bits = self.recipe.activation_bits(f"{name}.q")
        needed = self._largest(f"{name}.q", bits) / (2 ** (bits - 1) - 1)
        if bits == 16:  # before the rotation, q is as wide as afterwards
            needed = np.maximum(needed, self.ranges[f"{name}.q_proj"].largest / 32767)
        product = float((needed * opposite).max())
        return (product if product > 0 else 1.0) / opposite, k_scale

    # Nodes -------------------------------------------------------------------------------------

    def _node(self, node: Node, channels: int, bits: int, scale: float | Float) -> None:
        scales = tuple(float(s) for s in np.atleast_1d(scale))
        self.nodes.append(node)
        self.tensors[node.out] = Tensor(name=node.out, channels=channels, bits=bits, scale=scales)

    def _constant(self, name: str, value: NDArray, dtype: str) -> None:
        self.constants[name] = np.ascontiguousarray(value.astype(dtype))

    def _uniform(self, name: str) -> float:
        """The scale of a tensor that has only one."""
        (scale,) = self.tensors[name].scale
        return scale

    def _parameters(self, name: str, ratios: Float) -> None:
        mult, shift = multipliers(ratios)
        self._constant(f"{name}.bias", np.zeros(len(ratios)), "int32")
        self._constant(f"{name}.mult", mult, "uint16")
        self._constant(f"{name}.shift", shift, "uint8")

    def _linear(self, name: str, x: str, weight: Float, scale: float | Float, bits: int = 16,
                table: str | None = None, table_scale: float | None = None) -> None:
        """``scale`` is that of the rescaled accumulator, which is the output without a table."""
        quantized, w_scale = quantize_rows(weight, self.tensors[x].bits)
        self._constant(f"{name}.weight", quantized, "int8")
        self._parameters(name, self._uniform(x) * w_scale / scale)
        self._node(Linear(name=name, out=name, x=x, weight=f"{name}.weight", bias=f"{name}.bias",
                          mult=f"{name}.mult", shift=f"{name}.shift", table=table),
                   len(weight), bits, scale if table_scale is None else table_scale)

    def _norm(self, name: str, x: str, gain: TorchTensor) -> None:
        c = self.config
        bits = self.recipe.activation_bits(name)
        # Finer than the normalised value's own LSB makes no sense, and needs gains out of reach.
        scale = max(self._scale(name, bits), float(gain.abs().max()) / 2**29)
        gains, shifts = signed_gains(_float64(gain) / scale / 2**15)
        self._constant(f"{name}.gain", gains, "int16")
        self._constant(f"{name}.bias", np.zeros(c.dim), "int32")
        self._constant(f"{name}.shift", shifts, "uint8")
        eps = round(c.norm_eps * (c.dim / self._uniform(x)) ** 2)
        eps_shift = max(eps.bit_length() - 16, 0)
        mantissa = (eps + (1 << eps_shift >> 1)) >> eps_shift
        if mantissa == 1 << 16:
            mantissa, eps_shift = mantissa >> 1, eps_shift + 1
        self._node(Norm(name=name, out=name, x=x, gain=f"{name}.gain", bias=f"{name}.bias",
                        shift=f"{name}.shift", eps=mantissa, eps_shift=eps_shift, center=False),
                   c.dim, bits, scale)

    def _add(self, name: str, a: str, b: str) -> str:
        scale = self._residual_scale(self._scale(name, 16))
        ratios = self._uniform(a) / scale, self._uniform(b) / scale
        _, shift = fixed.multiplier(max(ratios))
        mult_a, mult_b = (round(ratio * 2**shift) for ratio in ratios)
        self._node(Add(name=name, out=name, a=a, b=b, mult_a=mult_a, mult_b=mult_b, shift=shift),
                   self.config.dim, 16, scale)
        return name

    def _rope_tables(self) -> None:
        cos, sin = (np.repeat(_float64(x), 2, axis=1) for x in rope_tables(self.config))
        sin[:, 0::2] *= -1
        for name, table in (("rope.cos", cos), ("rope.sin", sin)):
            self._constant(name, fixed.saturate(np.rint(table * 2**15).astype(np.int64), 16),
                           "int16")


def silu(x: Float) -> Float:
    """x * sigmoid(x), without overflow."""
    return x / (1 + np.exp(-np.clip(x, -700, 700)))
