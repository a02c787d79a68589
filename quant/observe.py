"""Calibration: every activation of a float model under its integer graph's name, and its range.

`trace` runs the model once and returns the tensors that the integer graph also has, channel by
channel in the graph's order, so that both can be compared; `observe` keeps only their ranges.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from systolith.quant.llama import Llama, rotate

BINS_PER_OCTAVE = 32
"""Resolution of a histogram of magnitudes: percentiles are right within 2.2 %."""
POSITIONS = 16
"""How many positions of its sequence, evenly spaced, a rotated query or key is looked at."""
OCTAVES = 64
"""Magnitudes from 2**-32 to 2**32 are told apart."""


@torch.no_grad()
def trace(model: Llama, tokens: NDArray[np.int64]) -> dict[str, Tensor]:
    """Runs one sequence, int64 [T]; returns float tensors [T, channels] by the graph's names.

    The channels of queries and keys are in the graph's order if the model has adjacent pairs.
    Two names are not of the graph: "layers.i.ffn.gate_proj", the argument of SiLU, and
    "layers.i.ffn.gate", its value.
    """
    c = model.config
    found: dict[str, Tensor] = {}
    hooks = []

    def keep(module: nn.Module, name: str, what: str = "output") -> None:
        def hook(module, inputs, output):
            found[name] = (output if what == "output" else inputs[0])[0]
        hooks.append(module.register_forward_hook(hook))

    backbone = model.model
    keep(backbone.embed_tokens, "embedding")
    for i, block in enumerate(backbone.layers):
        name = f"layers.{i}"
        keep(block.input_layernorm, f"{name}.attention.norm")
        for part in ("q_proj", "k_proj", "v"):
            keep(getattr(block.self_attn, f"{part[0]}_proj"), f"{name}.attention.{part}")
        keep(block.self_attn.o_proj, f"{name}.attention.context", "input")
        keep(block.self_attn.o_proj, f"{name}.attention.o_proj")
        keep(block.post_attention_layernorm, f"{name}.attention.residual", "input")
        keep(block.post_attention_layernorm, f"{name}.ffn.norm")
        keep(block.mlp.gate_proj, f"{name}.ffn.gate_proj")
        keep(block.mlp.up_proj, f"{name}.ffn.up")
        keep(block.mlp.down_proj, f"{name}.ffn.product", "input")
        keep(block.mlp.down_proj, f"{name}.ffn.down")
        keep(block, f"{name}.ffn.residual")
    keep(backbone.norm, "norm")
    try:
        logits = model(torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None])
    finally:
        for hook in hooks:
            hook.remove()
    found["logits"] = logits[0]
    for i in range(c.n_layers):
        name = f"layers.{i}"
        for part in ("q", "k"):
            found[f"{name}.attention.{part}"] = _rotated(
                model, found[f"{name}.attention.{part}_proj"], torch.arange(len(tokens)))
        found[f"{name}.ffn.gate"] = nn.functional.silu(found[f"{name}.ffn.gate_proj"])
    return found


def _rotated(model: Llama, x: Tensor, positions: Tensor) -> Tensor:
    """Queries or keys [T, channels] after the rotation of their positions [T]."""
    cos, sin = model.model.cos[positions], model.model.sin[positions]
    heads = x.unflatten(1, (-1, model.config.head_dim)).transpose(0, 1)
    return rotate(heads, cos, sin, model.config.rope_pairs).transpose(0, 1).flatten(1)


@dataclass
class Range:
    """What calibration has seen of one tensor.

    ``largest``: the largest magnitude of each channel, float64 [channels]. ``counts``: how often
    each magnitude was seen in each channel, int64 [channels, bins], or None where not asked for.
    """

    largest: NDArray[np.float64]
    counts: NDArray[np.int64] | None = None

    def percentile(self, percent: float) -> NDArray[np.float64]:
        """The magnitude of each channel that ``percent`` of its values do not exceed.

        The histogram's answer is the upper end of a bin; it is never above the largest magnitude.
        """
        if self.counts is None:
            raise ValueError("Percentiles need a histogram: pass histogram to observe")
        cumulative = self.counts.cumsum(axis=1)
        wanted = np.ceil(cumulative[:, -1:] * percent / 100 - 1e-6)
        index = (cumulative >= np.maximum(wanted, 1)).argmax(axis=1)
        edge = 2.0 ** ((index + 1) / BINS_PER_OCTAVE - OCTAVES / 2)
        return np.minimum(edge, self.largest)


@dataclass
class Observer:
    """Accumulates ranges of named tensors; ``histogram`` says which names also get a histogram."""

    histogram: Callable[[str], bool] = lambda name: False
    ranges: dict[str, Range] = field(default_factory=dict)

    def add(self, name: str, x: NDArray) -> None:
        """Adds the values of a tensor (T, channels)."""
        magnitude = np.abs(np.asarray(x, dtype=np.float64))
        channels = magnitude.shape[1]
        if name not in self.ranges:
            counts = None
            if self.histogram(name):
                counts = np.zeros((channels, BINS_PER_OCTAVE * OCTAVES), dtype=np.int64)
            self.ranges[name] = Range(np.zeros(channels), counts)
        seen = self.ranges[name]
        np.maximum(seen.largest, magnitude.max(axis=0), out=seen.largest)
        if seen.counts is not None:
            bins = seen.counts.shape[1]
            exponent = np.log2(np.maximum(magnitude, 2.0 ** (-OCTAVES / 2)))
            index = np.clip((exponent + OCTAVES / 2) * BINS_PER_OCTAVE, 0, bins - 1)
            flat = index.astype(np.int64) + np.arange(channels) * bins
            seen.counts += np.bincount(flat.reshape(-1), minlength=channels * bins).reshape(
                channels, bins)


def observe(
    model: Llama,
    sequences: Iterable[NDArray[np.int64]],
    histogram: Callable[[str], bool] = lambda name: False,
) -> dict[str, Range]:
    """Ranges of every traced tensor over all calibration sequences, each int64 [T].

    Rotated queries and keys count at positions all over the model's longest sequence: a pair that
    turns slowly gets elsewhere than in the few hundred tokens of a calibration sequence.
    """
    longest = model.config.max_seq_len
    observer = Observer(histogram)
    for tokens in sequences:
        found = trace(model, tokens)
        for name, x in found.items():
            observer.add(name, x.double().numpy())
        for offset in range(0, longest, max(longest // POSITIONS, 1)):
            positions = (torch.arange(len(tokens)) + offset) % longest
            for name, x in found.items():
                if name.endswith((".q_proj", ".k_proj")):
                    rotated = _rotated(model, x, positions)
                    observer.add(name.removesuffix("_proj"), rotated.double().numpy())
    return observer.ranges
