"""What a configuration takes on an FPGA, by a closed form: multipliers and block RAMs.

Block RAMs of 18 kbit, 36 bits wide at most, as ECP5 and Xilinx have them. Held to one routed
machine (`small`: 136 multipliers, 113 block RAMs, docs/performance.md): what the vector unit with
softmax and norm takes for each lane is the rest of that machine, divided. It is exact there because
it was made from it; no second machine was routed, so how far off it is elsewhere is not known.
Queues and instruction buffers of the units are LUT memories, which are not counted.
"""

from dataclasses import dataclass

from systolith.config import Config

_BLOCK_BITS = 18 << 10
_WIDEST = 36
_DSP_PER_LANE = 18
"""Multipliers of a lane: (136 - 64) / 4 of the routed machine."""
_BRAM_PER_LANE = 17 / 4
"""Block RAMs of a lane beyond the memories below, for rows of 512: rings and fixed tables."""


@dataclass(frozen=True)
class Resources:
    """``dsp``: multipliers of 18 × 18 bits. ``bram``: block RAMs of 18 kbit."""

    dsp: int
    bram: int


def _blocks(rows: int, bits: int, lane: int) -> int:
    """Block RAMs of a memory with a write enable for each ``lane`` bits."""
    width = _WIDEST
    # A byte lane with its enable takes nine bits of a block's width.
    bits = bits * 9 // 8 if lane == 8 else bits
    while width > 9 and rows > _BLOCK_BITS // width:
        width //= 2
    return -(-bits // width) * -(-rows // (_BLOCK_BITS // width))


def resources(config: Config) -> Resources:
    """An estimate for a whole machine; the sequencer's and the buses' memories are small."""
    d, v = config.dim, config.lanes
    activations = 2 * _blocks(config.activation_rows // 2, 16 * d, 8)  # two read ports, two copies
    ports = config.weight_ports
    weights = ports * _blocks(config.weight_rows // ports, 8 * d, 8)
    accumulator = 2 * _blocks(config.accumulator_rows // 2, 32 * d, 32)
    parameters = _blocks(config.parameter_rows * d // v, 64 * v, 64)
    tables = v * _blocks(config.table_slots * 256, 32, 32)
    code = _blocks(config.instruction_rows, 256, 256) if config.instruction_rows else 0
    lanes = round(v * _BRAM_PER_LANE * max(1, config.max_length / 512))
    return Resources(
        dsp=d * d + v * _DSP_PER_LANE,
        bram=activations + weights + accumulator + parameters + tables + code + lanes,
    )
