"""Single accesses of 32 bits to the machine's registers and to memory, for the host link."""

from amaranth import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.axi import ADDRESS_BITS, AXI4Lite, AXI4Read, AXI4Write, drive_address

WORD_BYTES = 4
ACCESS = data.StructLayout({"addr": ADDRESS_BITS, "data": 32, "write": 1, "registers": 1})
RESULT = data.StructLayout({"data": 32, "error": 1})


class LinkBus(wiring.Component):
    """One access after another: a word of memory by a burst of one beat, or a register.

    An access takes two cycles and what the slave takes. ``data`` of a write's result is undefined.

    Members
    -------
    accesses : stream of {addr, data, write, registers}, in
        ``addr``: in bytes, a multiple of 4. ``registers``: on ``lite`` instead of memory.
    results : stream of {data, error}, out
        One for each access; ``error``: the slave's response was none of success.
    lite : ``AXI4Lite``, out
    read, write : ``AXI4Read``, ``AXI4Write``, out
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "accesses": In(stream.Signature(ACCESS)),
                "results": Out(stream.Signature(RESULT)),
                "lite": Out(AXI4Lite()),
                "read": Out(AXI4Read(config)),
                "write": Out(AXI4Write(config)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        words = self.config.bus_bytes // WORD_BYTES
        size = self.config.bus_bytes.bit_length() - 1
        access = Signal(ACCESS, reset_less=True)
        result = Signal(RESULT, reset_less=True)
        lane = access.addr[2:size]
        # Those of the address and data channels that are still to be accepted.
        ar, aw, w, lite_ar, lite_aw, lite_w = (
            Signal(name=name) for name in ("ar", "aw", "w", "lite_ar", "lite_aw", "lite_w")
        )
        for channel, waiting in (
            (self.read.ar, ar), (self.write.aw, aw), (self.write.w, w),
            (self.lite.ar, lite_ar), (self.lite.aw, lite_aw), (self.lite.w, lite_w),
        ):  # fmt: skip
            m.d.comb += channel.valid.eq(waiting)
            with m.If(channel.ready):
                m.d.sync += waiting.eq(0)
        beat = access.addr >> size << size
        for channel in (self.read.ar, self.write.aw):
            m.d.comb += drive_address(
                channel.payload, self.config, source=0, addr=beat, length=0
            )
        m.d.comb += [
            self.write.w.payload.last.eq(1),
            self.lite.w.payload.data.eq(access.data),
            self.lite.w.payload.strb.eq(0b1111),
            self.lite.ar.payload.addr.eq(access.addr),
            self.lite.aw.payload.addr.eq(access.addr),
            self.results.payload.eq(result),
        ]
        for word in range(words):
            m.d.comb += self.write.w.payload.data.word_select(word, 32).eq(access.data)
        m.d.comb += self.write.w.payload.strb.eq(0b1111 << WORD_BYTES * lane)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.accesses.ready.eq(1)
                m.d.sync += access.eq(self.accesses.payload)
                with m.If(self.accesses.valid):
                    item = self.accesses.payload
                    m.d.sync += [
                        ar.eq(~item.registers & ~item.write),
                        aw.eq(~item.registers & item.write),
                        w.eq(~item.registers & item.write),
                        lite_ar.eq(item.registers & ~item.write),
                        lite_aw.eq(item.registers & item.write),
                        lite_w.eq(item.registers & item.write),
                    ]
                    m.next = "WAIT"
            with m.State("WAIT"):
                r, b = self.read.r, self.write.b
                lite_r, lite_b = self.lite.r, self.lite.b
                m.d.comb += [channel.ready.eq(1) for channel in (r, b, lite_r, lite_b)]
                # No more than one of them answers.
                with m.If(r.valid):
                    m.d.sync += [
                        result.data.eq(r.payload.data.word_select(lane, 32)),
                        result.error.eq(r.payload.resp[1]),
                    ]
                with m.If(b.valid):
                    m.d.sync += result.error.eq(b.payload.resp[1])
                with m.If(lite_r.valid):
                    m.d.sync += [
                        result.data.eq(lite_r.payload.data),
                        result.error.eq(lite_r.payload.resp[1]),
                    ]
                with m.If(lite_b.valid):
                    m.d.sync += result.error.eq(lite_b.payload.resp[1])
                with m.If(r.valid | b.valid | lite_r.valid | lite_b.valid):
                    m.next = "RESULT"
            with m.State("RESULT"):
                m.d.comb += self.results.valid.eq(1)
                with m.If(self.results.ready):
                    m.next = "IDLE"
        return m
