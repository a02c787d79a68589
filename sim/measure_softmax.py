"""Cycles and accuracy of the softmax unit by itself, from simulated hardware."""

from typing import Any

import numpy as np

from systolith import golden
from systolith.config import Config
from systolith.fixed import multiplier

_SCALE = 1 / 4096
_SPREAD = 3.0
"""Standard deviation of the logits, a usual one for attention."""


def float_softmax(scores: np.ndarray, mult: int, shift: int) -> np.ndarray:
    """Softmax in float64 of int32 rows, with the scale that `mult` and `shift` represent."""
    x = scores * (mult * 2.0 ** -(shift + 16))
    e = np.exp2(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def measure_softmax(
    config: Config, rows: int, length: int, seed: int, wide: bool = True
) -> dict[str, Any]:
    """Stream `rows` random rows of `length` scores through the unit of `config`, without pauses.

    Returns `cycles` (first beat in to last beat out, both included), `latency` (first beat in to
    first beat out), `elements_per_cycle` (behind the latency), `max_error_lsb` (of the output,
    against float64), `row_sum_error` (largest distance of a row's sum from 1) and `bit_exact`
    (against golden.softmax). `wide`: 16-bit results, otherwise 8-bit.
    """
    from systolith.hdl.softmax import Softmax
    from systolith.hdl.verilog import to_verilog
    from systolith.sim.build import build
    from systolith.sim.runner import run

    if rows < 1:
        raise ValueError(f"Rows must be at least 1, not {rows}")
    if not 1 <= length <= config.max_length:
        raise ValueError(f"Length must be from 1 to {config.max_length}, not {length}")
    bits = 16 if wide else 8
    logits = np.random.default_rng(seed).normal(0, _SPREAD, (rows, length))
    scores = np.rint(logits / _SCALE).astype(np.int64)
    mult, shift = multiplier(_SCALE * float(np.log2(np.e)) * 65536)

    made = build(to_verilog(Softmax(config.lanes, config.max_length), "softmax"), "softmax")
    settings = {"mult": mult, "shift": shift, "limits": length, "bits": bits}
    result = run(made, "softmax", {"scores": scores, **settings}, seed=seed)

    got = np.array(result["probabilities"], dtype=np.int64)
    one = 2**bits - 1
    return {
        "cycles": result["cycles"],
        "latency": result["latency"],
        "elements_per_cycle": rows * length / (result["cycles"] - result["latency"]),
        "max_error_lsb": float(np.abs(got - float_softmax(scores, mult, shift) * one).max()),
        "row_sum_error": float(np.abs(got.sum(axis=1) / one - 1).max()),
        "bit_exact": bool(np.array_equal(got, golden.softmax(scores, mult, shift, length, bits))),
    }
