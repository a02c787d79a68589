"""Where the channels of a tensor lie in blocks of D lanes, and how weights become tiles.

A `Layout` is the list of channels in lane order, -1 where a lane is padding. Plain tensors keep
their order. Around attention, channels are moved so that a head needs no shuffling on the device:

- heads narrower than the array share a block; key head and query heads that meet in a product sit
  in the same lanes (the *lane group*) of their blocks, and the array masks the other lanes;
- heads wider than the array take whole blocks.

The moves cost nothing: they permute rows and columns of the weights around attention.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolith.fixed import Int
from systolith.graph import Attention


@dataclass(frozen=True)
class Layout:
    """Channels in lane order; ``channels[b * dim + lane]`` is a channel of the tensor, or -1."""

    dim: int
    channels: tuple[int, ...]

    @property
    def blocks(self) -> int:
        return len(self.channels) // self.dim

    def spread(self, values: NDArray, fill: int = 0) -> NDArray:
        """Moves the last axis of ``values`` (channels) into lane order, padding with ``fill``."""
        index = np.array(self.channels)
        spread = values[..., np.maximum(index, 0)]
        return np.where(index >= 0, spread, np.asarray(fill, dtype=values.dtype))

    def gather(self, lanes: NDArray) -> NDArray:
        """Inverse of ``spread``: picks the channels out of the last axis (lanes)."""
        index = np.array(self.channels)
        result = np.empty((*lanes.shape[:-1], int(index.max()) + 1), dtype=lanes.dtype)
        result[..., index[index >= 0]] = lanes[..., index >= 0]
        return result


def plain(channels: int, dim: int) -> Layout:
    """Channels in their own order, padded to whole blocks."""
    padded = -(-channels // dim) * dim
    return Layout(dim, tuple(c if c < channels else -1 for c in range(padded)))


@dataclass(frozen=True)
class Heads:
    """Placement of the heads of an attention on an array of ``dim`` lanes.

    A *key block set* is what one K (or V) tile column holds: ``per_block`` narrow heads side by
    side in one block, or one wide head in ``head_blocks`` blocks. Query blocks are ordered
    ``[key block set][query head of the group][head block]``.
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, node: Attention, dim: int) -> "Heads":
        return cls(dim, node.heads, node.kv_heads, node.head_dim)

    @property
    def padded_dim(self) -> int:
        """Lanes of one head: a power of two up to D, or a multiple of D."""
        if self.head_dim < self.dim:
            return 1 << (self.head_dim - 1).bit_length()
        return -(-self.head_dim // self.dim) * self.dim

    @property
    def per_block(self) -> int:
        """Heads that share a block."""
        return max(1, self.dim // self.padded_dim)

    @property
    def head_blocks(self) -> int:
        """Blocks that a head takes."""
        return max(1, self.padded_dim // self.dim)

    @property
    def group(self) -> int:
        """Query heads for each key head."""
        return self.heads // self.kv_heads

    @property
    def sets(self) -> int:
        """Key block sets."""
        return -(-self.kv_heads // self.per_block)

    def _head(self, head: int, limit: int) -> list[int]:
        """Lanes of one head; all padding where there is no such head."""
        return [
            head * self.head_dim + c if head < limit and c < self.head_dim else -1
            for c in range(self.padded_dim)
        ]

    def _fill(self, lanes: list[int]) -> list[int]:
        """A block of narrow heads whose lanes do not fill it (D no multiple of them)."""
        return lanes + [-1] * (-len(lanes) % self.dim)

    def keys(self) -> Layout:
        """Layout of k and v."""
        lanes: list[int] = []
        for block in range(self.sets):
            lanes += self._fill(
                [
                    lane
                    for i in range(self.per_block)
                    for lane in self._head(block * self.per_block + i, self.kv_heads)
                ]
            )
        return Layout(self.dim, tuple(lanes))

    def queries(self) -> Layout:
        """Layout of q and of the attention's result."""
        lanes: list[int] = []
        for block in range(self.sets):
            for member in range(self.group):
                members = [
                    (block * self.per_block + i) * self.group + member
                    if block * self.per_block + i < self.kv_heads
                    else self.heads
                    for i in range(self.per_block)
                ]
                lanes += self._fill(
                    [lane for head in members for lane in self._head(head, self.heads)]
                )
        return Layout(self.dim, tuple(lanes))

    def rotation(self, table: NDArray) -> NDArray:
        """RoPE columns (positions, head_dim) in lane order of one head: (positions, blocks, D).

        Narrow heads repeat the pattern over the block.
        """
        pad = np.zeros((len(table), self.padded_dim - self.head_dim), dtype=table.dtype)
        lanes = np.tile(np.concatenate([table, pad], axis=1), (1, self.per_block))
        return lanes.reshape(len(table), self.head_blocks, self.dim)


def weight_rows(weight: NDArray[np.int8], x: Layout, out: Layout) -> NDArray[np.int8]:
    """Stationary tiles of a linear layer, (n_tiles, k_tiles, D, D) int8.

    ``weight``: (N, K) int8. Row j, lane i of tile (n, k) is the weight from lane ``k * D + j`` of
    the input to lane ``n * D + i`` of the output.
    """
    lanes = out.spread(x.spread(weight).T)  # (K lanes, N lanes)
    tiles = lanes.reshape(x.blocks, x.dim, out.blocks, out.dim)
    return np.ascontiguousarray(tiles.transpose(2, 0, 1, 3))


def parameter_rows(out: Layout, bias: Int, mult: Int, shift: Int) -> NDArray[np.uint8]:
    """Parameter rows, (blocks, D, 8) uint8; padding lanes get zeros."""
    raw = np.zeros((len(out.channels), 8), dtype=np.uint8)
    raw[:, :4] = out.spread(bias.astype("<i4"))[:, None].view(np.uint8)
    raw[:, 4:6] = out.spread(mult)[:, None].view(np.uint8)
    raw[:, 6] = out.spread(shift.astype(np.uint8))
    return raw.reshape(out.blocks, out.dim, 8)


def planes(values: NDArray[np.int16], dim: int) -> NDArray[np.uint8]:
    """int16 lanes (..., blocks * D) as stored: (..., blocks, 2, D) uint8, low plane first."""
    blocks = values.reshape(*values.shape[:-1], -1, dim)
    raw = np.ascontiguousarray(blocks.astype("<i2")).view(np.uint8).reshape(*blocks.shape, 2)
    return np.ascontiguousarray(np.moveaxis(raw, -1, -2))


def from_planes(raw: NDArray[np.uint8], dim: int) -> Int:
    """Inverse of `planes`: stored rows (..., blocks * 2 * D) uint8 to lanes (..., blocks * D)."""
    rows = raw.reshape(*raw.shape[:-1], -1, 2, dim)
    low, high = rows[..., 0, :].astype(np.int64), rows[..., 1, :].view(np.int8).astype(np.int64)
    return (low | (high << 8)).reshape(*raw.shape[:-1], -1)
