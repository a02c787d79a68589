"""The interconnect of a board: AXI masters on one side, memories on the other, all in order.

masters ─▶ decode ─▶ one burst a cycle, in turn ─▶ slaves
                          └─▶ queue of who and where ─▶ routes of W, R and B

Reads and writes have nothing to do with each other. In each direction bursts are answered in the
order in which they were let through, whatever memory they went to; then no beat has to be looked
up, and no memory can overtake another.
"""

from collections.abc import Sequence

from amaranth import Module, Signal
from amaranth.hdl import Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.axi import (
    _INCR,
    ADDRESS,
    PAGE_BYTES,
    WRITE_RESPONSE,
    AXI4Read,
    AXI4Write,
    read_data,
    write_data,
)
from systolith.hdl.axi_beats import Nowhere
from systolith.hdl.pipeline import Buffer

IN_FLIGHT = 16
"""Bursts in each direction between their address and their last beat, or response."""

Regions = Sequence[tuple[int, int]]
"""(base, size) in bytes of each memory."""


def check_regions(regions: Regions) -> None:
    """Raises ``ValueError`` for regions that are empty, unaligned, overlap or leave the space."""
    if not regions:
        raise ValueError("Regions must be one at least")
    for base, size in regions:
        if base < 0 or size <= 0 or base % PAGE_BYTES or size % PAGE_BYTES:
            raise ValueError(
                f"Base and size of a region must be multiples of {PAGE_BYTES}, the size not 0, "
                f"not {base:#x} and {size:#x}"
            )
        if base + size > 1 << 32:
            raise ValueError(f"Region at {base:#x} must end within 4 GiB, not at {base + size:#x}")
    for (base, size), (other, _) in zip(sorted(regions), sorted(regions)[1:], strict=False):
        if base + size > other:
            raise ValueError(f"Regions must not overlap, as those at {base:#x} and {other:#x} do")


class Decode(wiring.Component):
    """Finds where a burst goes, and puts a register behind that.

    A burst that is not INCR, or whose beats are narrower than the bus, goes nowhere: the memories
    do not know such bursts.

    Members
    -------
    i : in, stream of ``ADDRESS``
    o : out, stream of {burst, slave}
        Addresses count from the base of the region. ``slave``: the region's index, or how many
        there are.
    """

    def __init__(self, config: Config, regions: Regions) -> None:
        self.config = config
        self.regions = regions
        self.shape = data.StructLayout({"burst": ADDRESS, "slave": range(len(regions) + 1)})
        super().__init__(
            {"i": In(stream.Signature(ADDRESS)), "o": Out(stream.Signature(self.shape))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.buffer = buffer = Buffer(self.shape)
        wiring.connect(m, buffer.o, wiring.flipped(self.o))
        given, found = self.i.payload, buffer.i.payload
        shift = PAGE_BYTES.bit_length() - 1
        page = given.addr[shift:]
        full = self.config.bus_bytes.bit_length() - 1
        m.d.comb += [
            buffer.i.valid.eq(self.i.valid),
            self.i.ready.eq(buffer.i.ready),
            found.burst.eq(given),
            found.slave.eq(len(self.regions)),
        ]
        with m.If((given.burst == _INCR) & (given.size == full)):
            for number, (base, size) in enumerate(self.regions):
                first, stop = base >> shift, (base + size) >> shift
                with m.If((page >= first) & (page < stop)):
                    m.d.comb += [
                        found.slave.eq(number),
                        found.burst.addr[shift:].eq(page - first),
                    ]
        return m


def order(masters: int, slaves: int) -> data.StructLayout:
    """Who asked, and where the burst went."""
    return data.StructLayout({"master": range(masters), "slave": range(slaves)})


class _Queue(wiring.Component):
    """A queue of ``order``; its head is in registers."""

    def __init__(self, shape: data.StructLayout) -> None:
        self.shape = shape
        super().__init__(
            {"i": In(stream.Signature(self.shape)), "o": Out(stream.Signature(self.shape))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.queue = queue = fifo.SyncFIFO(
            width=Value.cast(self.i.payload).shape().width, depth=IN_FLIGHT
        )
        m.submodules.head = head = Buffer(self.shape)
        m.d.comb += [
            queue.w_data.eq(Value.cast(self.i.payload)),
            queue.w_en.eq(self.i.valid),
            self.i.ready.eq(queue.w_rdy),
            Value.cast(head.i.payload).eq(queue.r_data),
            head.i.valid.eq(queue.r_rdy),
            queue.r_en.eq(head.i.ready),
        ]
        wiring.connect(m, head.o, wiring.flipped(self.o))
        return m


class Dispatch(wiring.Component):
    """Lets the bursts of several masters through, in turn, and notes them in queues.

    One burst a cycle. A burst waits for its slave and for room in all queues; nobody overtakes it
    then. After a burst of a master the others come first.

    Members
    -------
    masters : array of streams of ``ADDRESS``, in
    slaves : array of streams of ``ADDRESS``, out
        One for each region, and the last for addresses outside of all.
    orders : array of streams of {master, slave}, out
        All alike, one for each channel that has to follow.
    """

    def __init__(self, config: Config, masters: int, regions: Regions, orders: int) -> None:
        self.config = config
        self.regions = regions
        self.order = order(masters, len(regions) + 1)
        super().__init__(
            {
                "masters": In(stream.Signature(ADDRESS)).array(masters),
                "slaves": Out(stream.Signature(ADDRESS)).array(len(regions) + 1),
                "orders": Out(stream.Signature(self.order)).array(orders),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        count = len(self.masters)
        asked = []
        for number, master in enumerate(self.masters):
            m.submodules[f"decode_{number}"] = decode = Decode(self.config, self.regions)
            wiring.connect(m, wiring.flipped(master), decode.i)
            asked.append(decode.o)

        # The one after the last has priority; the last assignment wins.
        last, chosen = Signal(range(count)), Signal(range(count))
        with m.Switch(last):
            for before in range(count):
                with m.Case(before):
                    for step in range(count, 0, -1):
                        number = (before + step) % count
                        with m.If(asked[number].valid):
                            m.d.comb += chosen.eq(number)
        burst = Signal(ADDRESS)
        where = Signal(range(len(self.slaves)))
        offered, room, goes = Signal(), Signal(), Signal()
        with m.Switch(chosen):
            for number, master in enumerate(asked):
                with m.Case(number):
                    m.d.comb += [
                        burst.eq(master.payload.burst),
                        where.eq(master.payload.slave),
                        offered.eq(master.valid),
                        master.ready.eq(goes),
                    ]
        queues = []
        for number, follower in enumerate(self.orders):
            m.submodules[f"order_{number}"] = queue = _Queue(self.order)
            m.d.comb += [
                queue.i.valid.eq(goes),
                queue.i.payload.master.eq(chosen),
                queue.i.payload.slave.eq(where),
            ]
            wiring.connect(m, queue.o, wiring.flipped(follower))
            queues.append(queue.i.ready)
        with m.Switch(where):
            for number, slave in enumerate(self.slaves):
                m.submodules[f"slave_{number}"] = buffer = Buffer(ADDRESS)
                wiring.connect(m, buffer.o, wiring.flipped(slave))
                m.d.comb += buffer.i.payload.eq(burst)
                with m.Case(number):
                    m.d.comb += [room.eq(buffer.i.ready), buffer.i.valid.eq(goes)]
        for ready in queues:
            offered = offered & ready
        m.d.comb += goes.eq(offered & room)
        with m.If(goes):
            m.d.sync += last.eq(chosen)
        return m


def route(
    m: Module, name: str, shape, head, sources: Sequence, sinks: Sequence, *, back: bool
) -> None:
    """One channel: ``head`` of its orders says which source talks to which sink.

    ``back``: from slave to master. Every sink has a register in front of it. The order moves on
    with a ``last`` beat; without such a member, with every one.
    """
    give, take = ("slave", "master") if back else ("master", "slave")
    word = Signal(shape, name=f"{name}_word")
    offered = Signal(name=f"{name}_offered")
    room = Signal(name=f"{name}_room")
    moves = Signal(name=f"{name}_moves")
    m.d.comb += moves.eq(head.valid & offered & room)
    with m.Switch(head.payload[give]):
        for number, source in enumerate(sources):
            with m.Case(number):
                m.d.comb += [
                    Value.cast(word).eq(Value.cast(source.payload)),
                    offered.eq(source.valid),
                    source.ready.eq(head.valid & room),
                ]
    with m.Switch(head.payload[take]):
        for number, sink in enumerate(sinks):
            m.submodules[f"{name}_{number}"] = buffer = Buffer(shape)
            wiring.connect(m, buffer.o, sink)
            m.d.comb += Value.cast(buffer.i.payload).eq(Value.cast(word))
            with m.Case(number):
                m.d.comb += [room.eq(buffer.i.ready), buffer.i.valid.eq(moves)]
    ends = word.last if "last" in dict(iter(shape)) else 1
    m.d.comb += head.ready.eq(moves & ends)


class MemoryBus(wiring.Component):
    """Several masters share several memories.

    Bursts are let through one a cycle, masters in turn, reads beside writes, and answered in that
    order. A beat a cycle on every channel, without a gap between bursts, whoever sent them (but for
    a cycle behind single-beat writes that follow a long one). Up to ``IN_FLIGHT`` bursts and a few
    are under way in each direction. A master must take what it has asked for, and give the data of
    a write whose AW was taken, without waiting for anything else of its own: all others wait behind
    it.

    A burst outside of all regions, or none of full-width INCR beats, is answered with DECERR, beat
    by beat. Bursts do not cross 4 KiB, so that none is in two regions. Memories see addresses that
    count from their base, and the master's IDs, which they have to echo.

    Two cycles from AR and AW of a master to those of a memory, one on W, R and B; every output but
    ``ready`` of the memories' R and B and of the masters' W is a register, and those three depend
    on registers of the bus alone.

    Parameters
    ----------
    masters : int
    regions : sequence of (base, size)
        In bytes, multiples of 4096, apart from each other.

    Members
    -------
    read_masters : array of ``AXI4Read``, in; write_masters : array of ``AXI4Write``, in
    read_slaves : array of ``AXI4Read``, out; write_slaves : array of ``AXI4Write``, out
        In the order of ``regions``.
    """

    def __init__(self, config: Config, masters: int, regions: Regions) -> None:
        if masters < 1:
            raise ValueError(f"Masters must be at least 1, not {masters!r}")
        check_regions(regions)
        self.config = config
        self.regions = list(regions)
        super().__init__(
            {
                "read_masters": In(AXI4Read(config)).array(masters),
                "write_masters": In(AXI4Write(config)).array(masters),
                "read_slaves": Out(AXI4Read(config)).array(len(regions)),
                "write_slaves": Out(AXI4Write(config)).array(len(regions)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config, masters = self.config, len(self.read_masters)
        m.submodules.nowhere = nowhere = Nowhere(config)
        m.submodules.reads = reads = Dispatch(config, masters, self.regions, 1)
        m.submodules.writes = writes = Dispatch(config, masters, self.regions, 2)
        # The slaves' side of each, as their masters.
        read_slaves = [*map(wiring.flipped, self.read_slaves), nowhere.read]
        write_slaves = [*map(wiring.flipped, self.write_slaves), nowhere.write]
        for number in range(masters):
            wiring.connect(m, wiring.flipped(self.read_masters[number].ar), reads.masters[number])
            wiring.connect(m, wiring.flipped(self.write_masters[number].aw), writes.masters[number])
        for number, (read, write) in enumerate(zip(read_slaves, write_slaves, strict=True)):
            wiring.connect(m, reads.slaves[number], read.ar)
            wiring.connect(m, writes.slaves[number], write.aw)

        route(
            m, "r", read_data(config), reads.orders[0],
            [slave.r for slave in read_slaves],
            [wiring.flipped(master.r) for master in self.read_masters], back=True,
        )  # fmt: skip
        route(
            m, "w", write_data(config), writes.orders[0],
            [master.w for master in self.write_masters],
            [slave.w for slave in write_slaves], back=False,
        )  # fmt: skip
        route(
            m, "b", WRITE_RESPONSE, writes.orders[1],
            [slave.b for slave in write_slaves],
            [wiring.flipped(master.b) for master in self.write_masters], back=True,
        )  # fmt: skip
        return m
