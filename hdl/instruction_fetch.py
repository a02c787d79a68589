"""Reads instructions from memory ahead of their execution, and single words for ``ldr``."""

from amaranth import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.axi import ReadClient
from systolith.hdl.instruction_buffer import InstructionBuffer
from systolith.hdl.layouts import PC_BITS
from systolith.isa import INSTRUCTION_BYTES

AHEAD = 16
"""Instructions that are fetched ahead: a queue of bursts of other readers may be in front."""
BURST = 4
"""Instructions in a burst, where ``max_burst`` allows."""
_IN_FLIGHT = 15

FETCHED = data.StructLayout({"data": 32, "error": 1})
"""A word from memory; ``error``: the bus answered with an error instead."""


class InstructionFetch(wiring.Component):
    """A stream of the 32-bit words of consecutive instructions, from a given one on.

    Bursts of ``BURST`` instructions, aligned to their size, so that none crosses 4 KiB. Requests
    are sent only for what the buffer has room for: beats are always taken at once, and nothing that
    is not consumed can block the bus. One word a cycle; the first one three cycles after its beat.
    With ``instruction_rows`` the buffer keeps that many instructions, the last ones fetched, and a
    restart at one of them fetches nothing: a loop that is not longer, by ``AHEAD`` instructions, is
    read from memory once. Otherwise a restart drops what was fetched and what is on its way.

    ``ldr`` words go through the same client, behind the instructions that have been requested; no
    further instructions are requested in the meantime. One ``ldr`` at a time, no restart during it.

    Members
    -------
    base : in, 32
        Byte address of instruction 0, a multiple of 32; addresses of ``ldr`` are relative to it.
    bus : ``ReadClient``, out
    words : stream of ``FETCHED``, out
    addresses : stream of 32 bits, in
        Byte addresses for ``ldr``, multiples of 4.
    loaded : stream of ``FETCHED``, out
        The words at ``addresses``.
    restart : in, 1; pc : in, 24
        The next word is the first of instruction ``pc``, two cycles later if the instruction is in
        the buffer. What ``words`` offers in this very cycle is of before.
    flush : in, 1
        With ``restart``: memory holds another program.
    stop : in, 1
        No further requests are sent.
    beat : out, 1
        A beat with instructions came from the bus.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "base": In(32),
                "bus": Out(ReadClient(config)),
                "words": Out(stream.Signature(FETCHED)),
                "addresses": In(stream.Signature(32)),
                "loaded": Out(stream.Signature(FETCHED)),
                "restart": In(1),
                "flush": In(1),
                "pc": In(PC_BITS),
                "stop": In(1),
                "beat": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bus_bytes = self.config.bus_bytes
        size = bus_bytes.bit_length() - 1
        longest = min(self.config.max_burst, BURST * INSTRUCTION_BYTES // bus_bytes)
        burst_bits = longest.bit_length() - 1  # log2 of the beats of an aligned burst
        m.submodules.buffer = buffer = InstructionBuffer(
            8 * bus_bytes + 1,
            INSTRUCTION_BYTES // bus_bytes,
            AHEAD,
            max(AHEAD, self.config.instruction_rows),
        )
        drop = Signal()
        m.d.comb += drop.eq(self.restart & ~buffer.hit)

        # Requests, through a register: what is in it counts as in flight.
        requested = Signal()
        request = Signal.like(self.bus.requests.payload, reset_less=True)
        next_beat = Signal(32 - size, reset_less=True)
        in_flight = Signal(range(_IN_FLIGHT + 1))
        stale = Signal(range(_IN_FLIGHT + 1))
        loading = Signal()
        started = Signal()
        beats = Signal(range((1 << burst_bits) + 1))
        ask, load = Signal(), Signal()
        free = Signal()
        wanted = Signal()
        """An ``ldr`` waits for its request, with its ``address``."""
        address = Signal(32, reset_less=True)
        first_byte = Signal(32)
        """Of the instruction ``pc``."""
        m.d.comb += [
            self.bus.requests.valid.eq(requested),
            self.bus.requests.payload.eq(request),
            free.eq((~requested | self.bus.requests.ready) & (in_flight != _IN_FLIGHT)),
            first_byte.eq(self.base + (self.pc << 5)),
            beats.eq((1 << burst_bits) - next_beat[:burst_bits]),
            load.eq(free & wanted & ~loading & ~self.stop),
            ask.eq(
                free & started & ~self.restart & ~wanted & ~loading & ~self.stop
                & (buffer.free >= 1 << burst_bits)
            ),
            self.addresses.ready.eq(~wanted & ~loading),
        ]  # fmt: skip
        with m.If(self.addresses.valid & self.addresses.ready):
            m.d.sync += [wanted.eq(1), address.eq(self.base + self.addresses.payload)]
        with m.If(self.bus.requests.ready):
            m.d.sync += requested.eq(0)
        lane = Signal(max(size - 2, 0))
        with m.If(load):
            m.d.sync += [
                requested.eq(1),
                request.addr.eq(address & ~(bus_bytes - 1)),
                request.beats.eq(1),
                lane.eq(address[2:size]),
                loading.eq(1),
                wanted.eq(0),
            ]
        with m.Elif(ask):
            m.d.sync += [
                requested.eq(1),
                request.addr.eq(next_beat << size),
                request.beats.eq(beats),
                next_beat[burst_bits:].eq(next_beat[burst_bits:] + 1),
                next_beat[:burst_bits].eq(0),
            ]

        # Answers, in the order of the requests. The one of an ldr is the last in flight.
        answer = self.bus.data.payload
        arrived, ended = Signal(), Signal()
        is_loaded, is_instruction = Signal(), Signal()
        m.d.comb += [
            self.bus.data.ready.eq(1),
            arrived.eq(self.bus.data.valid),
            ended.eq(arrived & answer.last),
            is_loaded.eq(arrived & loading & (in_flight == 1)),
            is_instruction.eq(arrived & ~is_loaded & (stale == 0) & ~drop),
            self.beat.eq(arrived & ~is_loaded),
        ]
        m.d.sync += in_flight.eq(in_flight + (load | ask) - ended)
        with m.If(drop):
            m.d.sync += [
                stale.eq(in_flight - ended),
                next_beat.eq(first_byte[size:]),
                started.eq(1),
            ]
        with m.Elif(ended & (stale != 0)):
            m.d.sync += stale.eq(stale - 1)

        with m.If(self.loaded.ready):
            m.d.sync += self.loaded.valid.eq(0)
        with m.If(is_loaded):
            m.d.sync += [
                loading.eq(0),
                self.loaded.valid.eq(1),
                self.loaded.payload.data.eq(answer.data.word_select(lane, 32)),
                self.loaded.payload.error.eq(answer.error),
            ]

        # Beats wait in a memory, and leave it word by word through a register.
        position = Signal(max(size - 2, 0))
        advance = Signal()
        beat = buffer.beat[:-1]
        m.d.comb += [
            buffer.w_data.eq(Cat(answer.data, answer.error)),
            buffer.write.eq(is_instruction),
            buffer.request.eq(ask),
            buffer.beats_asked.eq(beats),
            buffer.restart.eq(self.restart),
            buffer.pc.eq(self.pc),
            buffer.flush.eq(self.flush),
            advance.eq(buffer.valid & (~self.words.valid | self.words.ready)),
            buffer.next.eq(advance & position.all()),
        ]
        with m.If(self.words.ready):
            m.d.sync += self.words.valid.eq(0)
        with m.If(advance):
            m.d.sync += [
                self.words.valid.eq(1),
                self.words.payload.data.eq(beat.word_select(position, 32)),
                self.words.payload.error.eq(buffer.beat[-1]),
                position.eq(position + 1),
            ]
        with m.If(self.restart):
            m.d.sync += [self.words.valid.eq(0), position.eq(0)]
        return m
