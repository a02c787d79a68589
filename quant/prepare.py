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


def adjacent_pairs(model: Llama, context: int | None = None) -> Llama:
    """A copy with ``rope_pairs`` "adjacent", for sequences of up to ``context`` tokens."""
    c = model.config
    changed = Llama(replace(c, rope_pairs="adjacent", max_seq_len=context or c.max_seq_len))
    state = dict(model.state_dict())
    if c.rope_pairs != "adjacent":
        order = torch.arange(c.head_dim).view(2, -1).T.flatten()
        for i in range(c.n_layers):
            for part in ("q", "k"):
                name = f"model.layers.{i}.self_attn.{part}_proj.weight"
                state[name] = state[name].view(-1, c.head_dim, c.dim)[:, order].flatten(0, 1)
    changed.load_state_dict(state)
    return changed.eval().requires_grad_(False)


def turn_pairs(model: Llama, sequences: Iterable[NDArray[np.int64]]) -> Llama:
    """A copy whose keys need the smallest range that turning their pairs can give.

    ``model`` has adjacent pairs; ``sequences``: calibration tokens, each int64 [T]. A key counts
    at every position of the model, not only where calibration has seen it.
    """
    c = model.config
    step = math.pi / 2 / ANGLES
    angles = torch.arange(2 * ANGLES, dtype=torch.float64) * step
    axis = torch.stack((angles.cos(), -angles.sin()))            # first coordinate after a turn
    seen = torch.zeros(c.n_layers, c.kv_dim // 2, 2 * ANGLES, dtype=torch.float64)
    for tokens in sequences:
        found = trace(model, tokens)
        for i in range(c.n_layers):
            x = found[f"layers.{i}.attention.k_proj"].double().unflatten(1, (-1, 2))
            torch.maximum(seen[i], (x @ axis).abs().amax(dim=0), out=seen[i])
    # The second coordinate is the first one a quarter turn earlier.
    seen = seen.unflatten(-1, (2, ANGLES)).amax(dim=-2)                          # [L, pairs, A]
    seen = seen.unflatten(1, (c.n_kv_heads, -1))                                 # [L, G, P/2, A]
    turns = torch.atan2(model.model.sin.double(), model.model.cos.double()) / step
    largest = torch.stack([
        torch.stack([seen[:, :, i].roll(-int(k), dims=-1)
                     for k in (turns[:, i].round() % ANGLES).unique()]).amax(dim=0)
        for i in range(c.head_dim // 2)], dim=2)                                 # [L, G, P/2, A]
    changed = copy.deepcopy(model)
    for i, block in enumerate(changed.model.layers):
        best = angles[largest[i].argmin(dim=-1)].unsqueeze(1)                    # [G, 1, P/2]
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


def prepare(
    model: Llama, sequences: Iterable[NDArray[np.int64]], context: int | None = None
) -> Llama:
    """A model of the same function on up to ``context`` tokens, with all of the above done."""
    return turn_pairs(adjacent_pairs(model, context), sequences)
