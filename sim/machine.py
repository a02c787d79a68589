"""The golden machine: executes a program image instruction by instruction, in numpy.

It has the memories of a configuration and applies ``core.golden`` to them in program order. The
units of the hardware run concurrently; semaphores in the program make their effect equal to this
order, which is what the RTL is compared with.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from systolith import golden, scalar
from systolith.config import Config
from systolith.fixed import Int, saturate
from systolith.isa import (
    INSTRUCTION_BYTES,
    WORDS,
    Combine,
    Format,
    Instruction,
    LoadSpace,
    ProgramError,
    StoreSpace,
    TableMode,
    decode,
)


class MachineError(ProgramError):
    """A program did what the hardware answers with an error status."""


class GoldenMachine:
    """Memories and registers of one machine; ``run`` executes a program from address 0 of memory.

    ``memory``: (bytes,) uint8, what register BASE points to; it is modified in place.
    ``on_mark``: called with the value of each ``mark`` instruction.
    """

    def __init__(
        self,
        config: Config,
        memory: NDArray[np.uint8],
        on_mark: Callable[[int], None] | None = None,
    ) -> None:
        d = config.dim
        self.config = config
        self.memory = memory
        self.on_mark = on_mark
        self.activation = np.zeros((config.activation_rows, d), dtype=np.uint8)
        self.weight = np.zeros((config.weight_rows, d), dtype=np.int8)
        self.accumulator = np.zeros((config.accumulator_rows, d), dtype=np.int64)
        self.parameter = np.zeros((config.parameter_rows * 8, d), dtype=np.uint8)
        self.table = np.zeros((config.table_slots * 1024 // d, d), dtype=np.uint8)
        self.registers = [0] * 16
        self.best: tuple[int, int] | None = None  # running maximum: value, index
        self.executed = 0

    # Control -------------------------------------------------------------------------------------

    def run(self, max_instructions: int = 1 << 30, *, until: int | None = None) -> list[int]:
        """Executes from instruction 0 until ``halt``, or until instruction ``until`` would be next.

        Returns the instructions that were executed, in the order of their first time.

        Raises ``MachineError`` for what the hardware reports as an error, and when
        ``max_instructions`` have not been enough.
        """
        cache: dict[int, Instruction] = {}
        pc = 0
        for _ in range(max_instructions):
            if pc == until:
                return list(cache)
            if pc not in cache:
                cache[pc] = self._fetch(pc)
            item = cache[pc]
            if item.registers:
                item = self._with_registers(item, pc)
            self.executed += 1
            if item.op == "halt":
                return list(cache)
            pc = self._step(item, pc)
        raise MachineError(f"The program has not halted after {max_instructions} instructions")

    def _words(self, pc: int) -> list[int]:
        start = pc * INSTRUCTION_BYTES
        words = self.memory[start : start + INSTRUCTION_BYTES].view("<u4")
        if len(words) < WORDS:
            raise MachineError(f"Instruction {pc} is outside the memory")
        return [int(word) for word in words]

    def _fetch(self, pc: int) -> Instruction:
        return decode(self._words(pc))

    def _with_registers(self, item: Instruction, pc: int) -> Instruction:
        words = self._words(pc)  # bits outside the fields count: they may carry
        for word, register in item.registers.items():
            words[word] = (words[word] + self.registers[register]) & scalar.WORD_MASK
        return decode(words)

    def _step(self, item: Instruction, pc: int) -> int:
        """Executes one instruction; returns the next pc."""
        if item.op == "branch":
            return item.get("target") if scalar.holds(item) else pc + 1
        if item.op == "alu":
            self._set(item.get("rd"), scalar.compute(item))
        elif item.op == "ldr":
            address = item.get("address")
            if address % 4:
                raise MachineError(f"Instruction {pc}: misaligned address {address:#x}")
            self._set(item.get("rd"), int(self.memory[address : address + 4].view("<u4")[0]))
        elif item.op == "argmax":
            self._set(item.get("rd"), self.best[1] if self.best else 0)
        elif item.op == "mark":
            if self.on_mark:
                self.on_mark(item.get("x"))
        elif item.op != "fence":
            getattr(self, f"_{item.op}")(item)
        return pc + 1

    def _set(self, register: int, value: int) -> None:
        if register:
            self.registers[register] = value & scalar.WORD_MASK

    # Memory --------------------------------------------------------------------------------------

    def _rows(self, item: Instruction, word_bytes: int) -> tuple[Int, Int]:
        """Byte indices (rows, words * word_bytes) in memory, word indices (rows, words) inside."""
        for name in ("address", "stride") if item.get("rows") > 1 else ("address",):
            if item.get(name) % self.config.bus_bytes:
                raise MachineError(f"{item.op}: {name} {item.get(name):#x} is misaligned")
        m = np.arange(item.get("rows"))[:, None]
        count = item.get("words")
        outside = item.get("address") + m * item.get("stride") + np.arange(count * word_bytes)
        inside = item.get("local") + m * item.get("local_stride") + np.arange(count)
        return outside & scalar.WORD_MASK, inside

    def _load(self, item: Instruction) -> None:
        d = self.config.dim
        outside, inside = self._rows(item, d)
        rows = self.memory[outside].reshape(-1, d)
        space = LoadSpace(item.get("space"))
        target = {
            LoadSpace.ACTIVATION: self.activation,
            LoadSpace.WEIGHT: self.weight.view(np.uint8),
            LoadSpace.PARAMETER: self.parameter,
            LoadSpace.TABLE: self.table,
        }[space]
        target[inside.ravel() % len(target)] = rows

    def _store(self, item: Instruction) -> None:
        if item.get("space") == StoreSpace.ACTIVATION:
            outside, inside = self._rows(item, self.config.dim)
            rows = self.activation[inside % len(self.activation)]
        else:
            outside, inside = self._rows(item, 4 * self.config.dim)
            rows = self.accumulator[inside % len(self.accumulator)].astype("<i4").view(np.uint8)
        self.memory[outside] = rows.reshape(outside.shape)

    def _storew(self, item: Instruction) -> None:
        address = item.get("address")
        if address % 4:
            raise MachineError(f"storew: address {address:#x} is misaligned")
        self.memory[address : address + 4] = np.frombuffer(
            item.get("value").to_bytes(4, "little"), np.uint8
        )

    # Matmul --------------------------------------------------------------------------------------

    def _matmul(self, item: Instruction) -> None:
        d, g = self.config.dim, item.get
        m, k, n = (np.arange(g(name)) for name in ("rows", "k_tiles", "n_tiles"))
        planes = 2 if g("wide") else 1
        step = 2 if g("wide") or g("apart") else 1
        first = g("act") + m[:, None] * g("act_stride") + k * step
        low = self.activation[first % len(self.activation)]
        if planes == 2:
            high = self.activation[(first + 1) % len(self.activation)]
            high = high.view(np.int8) if g("signed") else high
            act = low.astype(np.int64) + (high.astype(np.int64) << 8)
        else:
            act = (low.view(np.int8) if g("signed") else low).astype(np.int64)
        lanes = np.arange(d) >> g("group_log2") == g("group")
        if g("mask_in"):
            act = act * lanes
        tile = g("weight") + n[:, None] * g("w_stride_n") + k * g("w_stride_k")
        if self.config.weight_ports > 1 and (tile % d).any():
            raise MachineError(
                f"matmul: a tile of weights starts at row {tile[tile % d > 0][0]}, and with "
                f"{self.config.weight_ports} weight ports it must be a multiple of {d}"
            )
        stored = self.weight[(tile[..., None] + np.arange(d)) % len(self.weight)]  # n, k, row, lane
        order = (1, 3, 0, 2) if g("columns") else (1, 2, 0, 3)
        weights = stored.transpose(order).reshape(len(k) * d, len(n) * d)
        rows = (g("acc") + m[:, None] * g("acc_stride") + n) % len(self.accumulator)
        before = self.accumulator[rows]
        start = before.reshape(len(m), -1) if g("accumulate") else 0
        result = golden.matmul(act.reshape(len(m), -1), weights, start).reshape(before.shape)
        self.accumulator[rows] = np.where(lanes, result, before) if g("mask_out") else result

    # Vector --------------------------------------------------------------------------------------

    def _blocks(self, first: Int, format: Format) -> Int:
        """Values (..., D) of the blocks whose first rows are given."""
        if format == Format.ACC32:
            return self.accumulator[first % len(self.accumulator)]
        low = self.activation[first % len(self.activation)]
        if format == Format.INT8:
            return low.view(np.int8).astype(np.int64)
        high = self.activation[(first + 1) % len(self.activation)].view(np.int8)
        return low.astype(np.int64) + (high.astype(np.int64) << 8)

    def _source(self, item: Instruction, format: Format) -> Int:
        """Source A, (rows, blocks, D)."""
        m, f = np.arange(item.get("rows"))[:, None], np.arange(item.get("blocks"))
        planes = 2 if format == Format.INT16 else 1
        return self._blocks(item.get("a") + m * item.get("a_stride") + f * planes, format)

    def _write(self, item: Instruction, values: Int) -> None:
        """Writes (rows, blocks, D) to the destination."""
        m, f = np.arange(item.get("rows"))[:, None], np.arange(item.get("blocks"))
        planes = 2 if item.get("d_wide") else 1
        first = item.get("d") + m * item.get("d_stride") + f * planes
        if item.get("d_weight"):
            self.weight[first % len(self.weight)] = (values & 0xFF).astype(np.uint8).view(np.int8)
            return
        self.activation[first % len(self.activation)] = (values & 0xFF).astype(np.uint8)
        if planes == 2:
            high = ((values >> 8) & 0xFF).astype(np.uint8)
            self.activation[(first + 1) % len(self.activation)] = high

    def _parameters(self, item: Instruction) -> tuple[Int, Int, Int]:
        """bias, mult, shift of each channel, (blocks, D) each."""
        d = self.config.dim
        f = np.arange(item.get("blocks"))
        uniform = item.op == "vector" and item.get("uniform")
        rows = (item.get("param") + (0 * f if uniform else f)) % self.config.parameter_rows
        raw = self.parameter.reshape(self.config.parameter_rows, d, 8)[rows]
        bias = np.ascontiguousarray(raw[..., :4]).view("<i4")[..., 0].astype(np.int64)
        mult = np.ascontiguousarray(raw[..., 4:6]).view("<u2")[..., 0].astype(np.int64)
        return bias, mult, raw[..., 6].astype(np.int64) & 63

    def _vector(self, item: Instruction) -> None:
        g = item.get
        bits = 16 if g("d_wide") else 8
        y = self._source(item, Format(g("a_format")))
        y = golden.scale(y, *self._parameters(item)) if g("scale") else saturate(y, 16)
        mode = TableMode(g("table"))
        if mode != TableMode.NONE:
            slots = self.table.reshape(self.config.table_slots, -1).view("<i2").reshape(-1, 256, 2)
            table = slots[g("slot") % self.config.table_slots]
            y = (
                golden.lookup(y, table)
                if mode == TableMode.INTERPOLATE
                else golden.lookup8(y, table)
            )
        combine = Combine(g("combine"))
        if combine == Combine.NONE:
            result = saturate(y, bits)
        else:
            result = self._combine(item, combine, y, bits)
        self._write(item, result)
        if g("argmax"):
            if g("restart"):
                self.best = None
            for row in result.reshape(len(result), -1)[:, : g("count")]:
                index = int(golden.argmax(row))
                if self.best is None or row[index] > self.best[0]:
                    self.best = (int(row[index]), index + g("first"))

    def _combine(self, item: Instruction, combine: Combine, y: Int, bits: int) -> Int:
        g = item.get
        m, f = np.arange(g("rows"))[:, None], np.arange(g("blocks"))
        f = f % g("b_period") if g("b_period") else f
        start = g("b") + m * g("b_stride")
        if combine == Combine.ROPE:
            cos = self._blocks(start + f * 4, Format.INT16)
            sin = self._blocks(start + f * 4 + 2, Format.INT16)
            return golden.rope(y, cos, sin, g("shift"), bits)
        if g("b_wide"):
            b = self._blocks(start + f * 2, Format.INT16)
        else:
            b = self._blocks(start + f, Format.INT8)
        if combine == Combine.ADD:
            return golden.add(y, b, g("mult_a"), g("mult_b"), g("shift"), bits)
        return golden.multiply(y, b, g("mult_a"), g("shift"), bits)

    def _softmax(self, item: Instruction) -> None:
        g = item.get
        scores = self._source(item, Format.ACC32)
        limit = g("limit") + np.arange(g("rows")) // max(g("limit_rows"), 1) * g("limit_step")
        bits = 16 if g("d_wide") else 8
        flat = scores.reshape(len(scores), -1)
        p = golden.softmax(flat, g("mult"), g("shift"), limit, bits)
        self._write(item, p.reshape(scores.shape))

    def _norm(self, item: Instruction) -> None:
        g = item.get
        x = self._source(item, Format.INT16)
        flat, length = x.reshape(len(x), -1), g("length")
        bias, mult, shift = (part.reshape(-1)[:length] for part in self._parameters(item))
        gain = mult - ((mult >> 15) << 16)
        bits = 16 if g("d_wide") else 8
        result = np.zeros_like(flat)
        result[:, :length] = golden.norm(
            flat[:, :length],
            gain,
            bias,
            shift,
            g("eps") << g("eps_shift"),
            center=bool(g("center")),
            bits=bits,
        )
        self._write(item, result.reshape(x.shape))
