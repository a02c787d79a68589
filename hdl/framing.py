"""Frames of ``core/host_link.py`` on streams of octets."""

from amaranth import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from systolith.host_link import CRC_BYTES, ESCAPE, FLAG, INVERTED

_CRC = CRC32_ISO_HDLC(data_width=8)

CONTENT = data.StructLayout({"octet": 8, "end": 1, "good": 1})
"""An octet of a frame, or with ``end`` what became of the frame."""
ANSWER = data.StructLayout({"octet": 8, "last": 1})


class Deframer(wiring.Component):
    """Removes flags and escapes, and checks the CRC.

    One octet a cycle. The octets of a frame come without delay, the four of its CRC included; then,
    at its flag, an item with ``end``, whose ``good`` says that the CRC was right. Frames without
    octets give nothing.

    Members
    -------
    octets : stream of unsigned(8), in
    contents : stream of {octet, end, good}, out
    """

    def __init__(self) -> None:
        super().__init__(
            {"octets": In(stream.Signature(8)), "contents": Out(stream.Signature(CONTENT))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.crc = crc = _CRC.create()
        escaped, some = Signal(), Signal()
        taken, flag, escape = Signal(), Signal(), Signal()
        m.d.comb += [
            flag.eq(self.octets.payload == FLAG),
            escape.eq(self.octets.payload == ESCAPE),
            self.contents.valid.eq(self.octets.valid & ~escape & (~flag | some | escaped)),
            self.contents.payload.octet.eq(
                self.octets.payload ^ (escaped << INVERTED.bit_length() - 1)
            ),
            self.contents.payload.end.eq(flag),
            self.contents.payload.good.eq(crc.match_detected & ~escaped),
            self.octets.ready.eq(self.contents.ready | ~self.contents.valid),
            taken.eq(self.octets.valid & self.octets.ready),
            crc.data.eq(self.contents.payload.octet),
            crc.valid.eq(taken & ~flag & ~escape),
            crc.start.eq(taken & flag),
        ]
        with m.If(taken):
            m.d.sync += [escaped.eq(escape), some.eq(~flag & (some | ~escape))]
        return m


class Framer(wiring.Component):
    """Adds flags, escapes and the CRC.

    Members
    -------
    contents : stream of {octet, last}, in
        ``last`` ends a frame.
    octets : stream of unsigned(8), out
    """

    def __init__(self) -> None:
        super().__init__(
            {"contents": In(stream.Signature(ANSWER)), "octets": Out(stream.Signature(8))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.crc = crc = _CRC.create()
        sum_left = Signal(8 * CRC_BYTES)
        place = Signal(range(CRC_BYTES))
        escaped, ended = Signal(), Signal()
        octet, special = Signal(8), Signal()
        sent = Signal()
        m.d.comb += [
            special.eq((octet == FLAG) | (octet == ESCAPE)),
            sent.eq(self.octets.valid & self.octets.ready & (escaped | ~special)),
            crc.data.eq(octet),
        ]

        def send() -> None:
            """``octet``, in two if it is special."""
            with m.If(escaped):
                m.d.comb += self.octets.payload.eq(octet ^ INVERTED)
            with m.Elif(special):
                m.d.comb += self.octets.payload.eq(ESCAPE)
            with m.Else():
                m.d.comb += self.octets.payload.eq(octet)
            with m.If(self.octets.valid & self.octets.ready):
                m.d.sync += escaped.eq(special & ~escaped)

        with m.FSM():
            with m.State("FLAG"):
                m.d.comb += [
                    self.octets.payload.eq(FLAG),
                    self.octets.valid.eq(ended | self.contents.valid),
                ]
                with m.If(self.octets.valid & self.octets.ready):
                    m.d.comb += crc.start.eq(1)
                    m.d.sync += ended.eq(0)
                    with m.If(~ended):
                        m.next = "CONTENT"
            with m.State("CONTENT"):
                m.d.comb += [
                    octet.eq(self.contents.payload.octet),
                    self.octets.valid.eq(self.contents.valid),
                    self.contents.ready.eq(sent),
                    crc.valid.eq(sent),
                ]
                send()
                with m.If(sent & self.contents.payload.last):
                    m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += [sum_left.eq(crc.crc), place.eq(0)]
                m.next = "CRC"
            with m.State("CRC"):
                m.d.comb += [octet.eq(sum_left[:8]), self.octets.valid.eq(1)]
                send()
                with m.If(sent):
                    m.d.sync += [sum_left.eq(sum_left >> 8), place.eq(place + 1), ended.eq(1)]
                    with m.If(place == CRC_BYTES - 1):
                        m.next = "FLAG"
        return m
