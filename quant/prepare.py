"""Changes a float model's weights, not its function, so that it quantizes well.

The inner product of a query and a key does not notice what happens to both alike. So the channels
of a head may be permuted, which brings every model to adjacent pairs; and each pair may be turned
by a fixed angle, which commutes with the rotary embedding's own rotation. Keys of a slowly rotating
pair often lie around one point of the plane: turned onto the diagonal, they need a smaller range.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from systolith.quant.llama import Llama
from systolith.quant.observe import trace

ANGLES = 48
"""Angles tried in a quarter turn."""


def adjacent_pairs(model: Llama) -> Llama:
    """The same function with ``rope_pairs`` "adjacent": a copy, or the model itself if it is so."""
    c = model.config
    if c.rope_pairs == "adjacent":
        return model
    changed = Llama(replace(c, rope_pairs="adjacent"))
    state = dict(model.state_dict())
    order = torch.arange(c.head_dim).view(2, -1).T.flatten()
    for i in range(c.n_layers):
        for part in ("q", "k"):
            name = f"model.layers.{i}.self_attn.{part}_proj.weight"
            state[name] = state[name].view(-1, c.head_dim, c.dim)[:, order].flatten(0, 1)
    changed.load_state_dict(state)
    return changed.eval().requires_grad_(False)


def turn_pairs(model: Llama, sequences: Iterable[NDArray[np.int64]]) -> Llama:
    """A copy whose keys need the smallest range that turning their pairs can give.

    ``model`` has adjacent pairs; ``sequences``: calibration tokens, each int64 [T].
    """
    c = model.config
    angles = torch.arange(ANGLES, dtype=torch.float64) * (math.pi / 2 / ANGLES)
    largest = torch.zeros(c.n_layers, ANGLES, c.kv_dim // 2, dtype=torch.float64)
    for tokens in sequences:
        found = trace(model, tokens)
        for i in range(c.n_layers):
            x = found[f"layers.{i}.attention.k"].double().unflatten(1, (-1, 2))  # [T, pairs, 2]
            for a, angle in enumerate(angles):
                seen = turn(x, angle).abs().amax(dim=(0, 2))
                largest[i, a] = torch.maximum(largest[i, a], seen)
    changed = copy.deepcopy(model)
    for i, block in enumerate(changed.model.layers):
        best = angles[largest[i].argmin(dim=0)].view(c.n_kv_heads, 1, -1)        # [G, 1, pairs]
        for module in (block.self_attn.q_proj, block.self_attn.k_proj):
            weight = module.weight.double().view(c.n_kv_heads, -1, c.head_dim // 2, 2, c.dim)
            turned = turn(weight.transpose(-1, -2), best[..., None]).transpose(-1, -2)
            module.weight.copy_(turned.reshape(module.weight.shape))
    return changed


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Turns the vectors x[..., 2] by an angle, broadcast over what is before the last axis."""
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., 0], x[..., 1]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)


def prepare(model: Llama, sequences: Iterable[NDArray[np.int64]]) -> Llama:
    """Everything above: a model of the same function, with adjacent pairs."""
    return turn_pairs(adjacent_pairs(model), sequences)
