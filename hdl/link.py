"""The board's end of the line to the host: requests of ``core/host_link.py`` are executed here."""

from dataclasses import replace

from amaranth import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.memory import Memory, MemoryData
from amaranth.lib.wiring import In, Out, connect, flipped

from systolith.config import Config
from systolith.hdl.axi import ADDRESS_BITS, AXI4Lite, AXI4Read, AXI4Write
from systolith.hdl.framing import ANSWER, CONTENT, Deframer, Framer
from systolith.hdl.link_bus import WORD_BYTES, LinkBus
from systolith.hdl.pipeline import Buffer
from systolith.hdl.uart import UartReceiver, UartTransmitter
from systolith.host_link import ANSWER as ANSWER_BIT
from systolith.host_link import (
    BUILD_OFFSET,
    CRC_BYTES,
    IDENTITY_BYTES,
    MAX_PAYLOAD,
    REQUEST,
    Identity,
    Operation,
    Status,
)

_WAITING_OCTETS = 256
"""That arrive while a request is executed; enough at four cycles a bit and fifty an access."""
_WORDS = (REQUEST.size + MAX_PAYLOAD + CRC_BYTES) // WORD_BYTES
_HEADER_WORDS = REQUEST.size // WORD_BYTES


class Executor(wiring.Component):
    """Executes the requests in frames.

    The frame is kept until its CRC is known, so that a damaged one does nothing. One request at a
    time; while it is executed, no further octets are taken.

    Members
    -------
    contents : stream of {octet, end, good}, in
        From a ``Deframer``.
    answers : stream of {octet, last}, out
        To a ``Framer``.
    build : in, 64
        The identity's ``build``, which is not known when the rest is.
    lite, read, write : out
        See ``LinkBus``.
    """

    def __init__(self, config: Config, identity: Identity) -> None:
        self.config = config
        self.identity = identity
        super().__init__(
            {
                "contents": In(stream.Signature(CONTENT)),
                "answers": Out(stream.Signature(ANSWER)),
                "build": In(64),
                "lite": Out(AXI4Lite()),
                "read": Out(AXI4Read(config)),
                "write": Out(AXI4Write(config)),
            }
        )

    def _identity_words(self) -> list[Value]:
        raw = replace(self.identity, build=0).to_bytes()
        words: list[Value] = [
            Const(int.from_bytes(raw[i : i + WORD_BYTES], "little"), 32)
            for i in range(0, IDENTITY_BYTES, WORD_BYTES)
        ]
        first = BUILD_OFFSET // WORD_BYTES
        words[first : first + 2] = [self.build[:32], self.build[32:]]
        return words

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.bus = bus = LinkBus(self.config)
        for name in ("lite", "read", "write"):
            connect(m, getattr(bus, name), flipped(getattr(self, name)))
        m.submodules.frame = frame = Memory(MemoryData(shape=32, depth=_WORDS, init=[]))
        put, get = frame.write_port(granularity=8), frame.read_port()

        # The frame comes in: its octets to the memory, its first ones also to registers.
        octets = Signal(range(WORD_BYTES * _WORDS + 2))
        """Of the frame so far; one more than fit stands for all that is too long."""
        header = Signal(8 * REQUEST.size, reset_less=True)
        operation, sequence = header[:8], header[8:16]
        length, address = header[16:32], header[32:]
        expected = Signal(8)
        failed = Signal()
        """Some write since HELLO."""
        content = self.contents.payload
        fits = octets < WORD_BYTES * _WORDS
        m.d.comb += [
            put.addr.eq(octets[2:]),
            put.data.eq(content.octet.replicate(WORD_BYTES)),
        ]

        # What the request is, known a cycle after its end.
        is_write = Signal()
        is_access = Signal()
        well_formed = Signal()
        age = Signal(8)
        """How many requests ago this one was the expected one."""
        body = Signal.like(octets)
        m.d.comb += [
            is_write.eq(
                (operation == Operation.WRITE_MEMORY) | (operation == Operation.WRITE_REGISTERS)
            ),
            is_access.eq(
                is_write
                | (operation == Operation.READ_MEMORY)
                | (operation == Operation.READ_REGISTERS)
            ),
            age.eq(expected - sequence),
            body.eq(octets - (REQUEST.size + CRC_BYTES)),
            well_formed.eq(
                (length != 0)
                & (length <= MAX_PAYLOAD)
                & (length[:2] == 0)
                & (address[:2] == 0)
                & (body == Mux(is_write, length, 0))
            ),
        ]

        status = Signal(Status)
        answered = Signal(8)
        """Operation of the answer."""
        numbered = Signal(8)
        """Its sequence number."""
        place = Signal(ADDRESS_BITS)
        left = Signal(range(MAX_PAYLOAD // WORD_BYTES + 1))
        """Words of the request."""
        word = Signal(32)
        lane = Signal(range(WORD_BYTES))
        source = Signal(range(_WORDS))
        answer = self.answers.payload

        def refuse(reason: Status) -> None:
            m.d.sync += [
                answered.eq(Operation.REFUSED | ANSWER_BIT),
                numbered.eq(expected),
                status.eq(reason),
                left.eq(0),
            ]
            m.next = "OPERATION"

        told = Signal(32)
        with m.Switch(source):
            for index, value in enumerate(self._identity_words()):
                with m.Case(index):
                    m.d.comb += told.eq(value)
        m.d.comb += get.addr.eq(source)
        m.d.comb += [
            bus.accesses.payload.addr.eq(place),
            bus.accesses.payload.data.eq(get.data),
            bus.accesses.payload.write.eq(is_write),
            bus.accesses.payload.registers.eq(
                (operation == Operation.READ_REGISTERS) | (operation == Operation.WRITE_REGISTERS)
            ),
        ]
        with m.FSM():
            with m.State("RECEIVE"):
                m.d.comb += self.contents.ready.eq(1)
                with m.If(self.contents.valid & ~content.end & fits):
                    m.d.comb += put.en.eq(1 << octets[:2])
                    m.d.sync += octets.eq(octets + 1)
                    with m.If(octets < REQUEST.size):
                        m.d.sync += header.eq(Cat(header[8:], content.octet))
                with m.Elif(self.contents.valid & ~content.end):
                    m.d.sync += octets.eq(WORD_BYTES * _WORDS + 1)
                with m.If(self.contents.valid & content.end):
                    with m.If(content.good & (octets >= REQUEST.size + CRC_BYTES)):
                        m.next = "DECIDE"
                    with m.Else():
                        refuse(Status.DAMAGED)
            with m.State("DECIDE"):
                m.d.sync += [
                    answered.eq(operation | ANSWER_BIT),
                    numbered.eq(sequence),
                    status.eq(Status.OK),
                    place.eq(address),
                    left.eq(length[2:]),
                    source.eq(0),
                ]
                with m.If(operation == Operation.HELLO):
                    m.d.sync += [expected.eq(sequence + 1), failed.eq(0)]
                    m.d.sync += left.eq(IDENTITY_BYTES // WORD_BYTES)
                    m.next = "OPERATION"
                with m.Elif(age > 128):
                    refuse(Status.OUT_OF_ORDER)
                with m.Elif(~is_access | ~well_formed):
                    refuse(Status.UNKNOWN)
                with m.Else():
                    with m.If(age == 0):
                        m.d.sync += expected.eq(expected + 1)
                    with m.If(~is_write):
                        m.next = "OPERATION"
                    with m.Elif(age == 0):
                        m.d.sync += source.eq(_HEADER_WORDS)
                        m.next = "FETCH"
                    with m.Else():  # was executed before
                        m.d.sync += [left.eq(0), status.eq(Mux(failed, Status.BUS_ERROR, 0))]
                        m.next = "OPERATION"
            # A write: word by word, and then the answer.
            with m.State("FETCH"):
                m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += bus.accesses.valid.eq(1)
                with m.If(bus.accesses.ready):
                    m.next = "WRITTEN"
            with m.State("WRITTEN"):
                m.d.comb += bus.results.ready.eq(1)
                with m.If(bus.results.valid):
                    with m.If(bus.results.payload.error):
                        m.d.sync += [status.eq(Status.BUS_ERROR), failed.eq(1)]
                    m.d.sync += [
                        place.eq(place + WORD_BYTES),
                        source.eq(source + 1),
                        left.eq(left - 1),
                    ]
                    m.next = "FETCH"
                    with m.If(left == 1):
                        m.next = "OPERATION"
            # The answer; a read's words come as the line takes them.
            with m.State("OPERATION"):
                m.d.comb += [answer.octet.eq(answered), self.answers.valid.eq(1)]
                with m.If(self.answers.ready):
                    m.next = "SEQUENCE"
            with m.State("SEQUENCE"):
                m.d.comb += [answer.octet.eq(numbered), self.answers.valid.eq(1)]
                with m.If(self.answers.ready):
                    m.next = "NEXT"
            with m.State("NEXT"):
                with m.If(left == 0):
                    m.next = "STATUS"
                with m.Elif(operation == Operation.HELLO):
                    m.d.sync += word.eq(told)
                    m.next = "WORD"
                with m.Else():
                    m.d.comb += bus.accesses.valid.eq(1)
                    with m.If(bus.accesses.ready):
                        m.next = "READ"
            with m.State("READ"):
                m.d.comb += bus.results.ready.eq(1)
                with m.If(bus.results.valid):
                    m.d.sync += word.eq(bus.results.payload.data)
                    with m.If(bus.results.payload.error):
                        m.d.sync += status.eq(Status.BUS_ERROR)
                    m.next = "WORD"
            with m.State("WORD"):
                m.d.comb += [answer.octet.eq(word[:8]), self.answers.valid.eq(1)]
                with m.If(lane == 0):
                    m.d.sync += source.eq(source + self.answers.ready)
                with m.If(self.answers.ready):
                    m.d.sync += [word.eq(word >> 8), lane.eq(lane + 1)]
                    with m.If(lane == WORD_BYTES - 1):
                        m.d.sync += [place.eq(place + WORD_BYTES), left.eq(left - 1)]
                        m.next = "NEXT"
            with m.State("STATUS"):
                m.d.comb += [
                    answer.octet.eq(status), answer.last.eq(1), self.answers.valid.eq(1)
                ]  # fmt: skip
                with m.If(self.answers.ready):
                    m.d.sync += octets.eq(0)
                    m.next = "RECEIVE"
        return m


class HostLink(wiring.Component):
    """Gives a host on a serial line access to registers and memory.

    Parameters
    ----------
    config : Config
    identity : Identity
        What the board tells of itself.
    cycles : int
        Clock cycles of a bit on the line (``uart.bit_cycles``).

    Members
    -------
    rx : in, 1
    tx : out, 1
        The line, idle high.
    build : in, 64
        See ``Executor``.
    lite : ``AXI4Lite``, out
        To the machine's registers.
    read, write : ``AXI4Read``, ``AXI4Write``, out
        To memory; ID 0, single beats.
    lost : out, 1
        Pulses when an octet came and found no place; the frame is refused for its CRC then.
    """

    def __init__(self, config: Config, identity: Identity, cycles: int) -> None:
        self.config, self.identity, self.cycles = config, identity, cycles
        super().__init__(
            {
                "rx": In(1, init=1),
                "build": In(64),
                "tx": Out(1),
                "lite": Out(AXI4Lite()),
                "read": Out(AXI4Read(config)),
                "write": Out(AXI4Write(config)),
                "lost": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self.cycles)
        m.submodules.waiting = waiting = fifo.SyncFIFOBuffered(width=8, depth=_WAITING_OCTETS)
        m.submodules.deframer = deframer = Deframer()
        m.submodules.executor = executor = Executor(self.config, self.identity)
        m.submodules.framer = framer = Framer()
        m.submodules.transmitter = transmitter = UartTransmitter(self.cycles)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            executor.build.eq(self.build),
            waiting.w_en.eq(receiver.octets.valid),
            waiting.w_data.eq(receiver.octets.payload),
            self.lost.eq(receiver.octets.valid & ~waiting.w_rdy),
            self.tx.eq(transmitter.tx),
        ]
        # The line is slow; the clock is not to be: registers behind the block RAM, and in front of
        # what decides on all of a frame's header.
        m.submodules.octets = octets = Buffer(unsigned(8))
        m.submodules.contents = contents = Buffer(CONTENT)
        connect(m, waiting.r_stream, octets.i)
        connect(m, octets.o, deframer.octets)
        connect(m, deframer.contents, contents.i)
        connect(m, contents.o, executor.contents)
        connect(m, executor.answers, framer.contents)
        connect(m, framer.octets, transmitter.octets)
        for name in ("lite", "read", "write"):
            connect(m, getattr(executor, name), flipped(getattr(self, name)))
        return m
