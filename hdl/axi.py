"""AXI: the bus's signatures and port names, the read arbiter, and how a job becomes bursts."""

from dataclasses import dataclass

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.hdl import Const, Shape, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config

ADDRESS_BITS = 32
PAGE_BYTES = 4096
"""No burst crosses a multiple of this."""
ID_BITS = 1
LITE_ADDRESS_BITS = 12

_INCR = 1
_MODIFIABLE_BUFFERABLE = 0b0011

ADDRESS = data.StructLayout(
    {
        "id": ID_BITS,
        "addr": ADDRESS_BITS,
        "len": 8,
        "size": 3,
        "burst": 2,
        "lock": 1,
        "cache": 4,
        "prot": 3,
        "qos": 4,
    }
)
"""Payload of AR and AW."""


def read_data(config: Config) -> data.StructLayout:
    """Payload of R."""
    return data.StructLayout({"id": ID_BITS, "data": 8 * config.bus_bytes, "resp": 2, "last": 1})


def write_data(config: Config) -> data.StructLayout:
    """Payload of W."""
    return data.StructLayout({"data": 8 * config.bus_bytes, "strb": config.bus_bytes, "last": 1})


WRITE_RESPONSE = data.StructLayout({"id": ID_BITS, "resp": 2})
"""Payload of B."""


class AXI4Read(wiring.Signature):
    """Read half of an AXI4 master: streams ``ar`` out, ``r`` in."""

    def __init__(self, config: Config) -> None:
        super().__init__(
            {"ar": Out(stream.Signature(ADDRESS)), "r": In(stream.Signature(read_data(config)))}
        )


class AXI4Write(wiring.Signature):
    """Write half of an AXI4 master: streams ``aw`` and ``w`` out, ``b`` in."""

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "aw": Out(stream.Signature(ADDRESS)),
                "w": Out(stream.Signature(write_data(config))),
                "b": In(stream.Signature(WRITE_RESPONSE)),
            }
        )


class AXI4Lite(wiring.Signature):
    """AXI4-Lite, 32-bit data, 12-bit byte addresses, seen from the master."""

    def __init__(self) -> None:
        address = data.StructLayout({"addr": LITE_ADDRESS_BITS, "prot": 3})
        super().__init__(
            {
                "aw": Out(stream.Signature(address)),
                "w": Out(stream.Signature(data.StructLayout({"data": 32, "strb": 4}))),
                "b": In(stream.Signature(data.StructLayout({"resp": 2}))),
                "ar": Out(stream.Signature(address)),
                "r": In(stream.Signature(data.StructLayout({"data": 32, "resp": 2}))),
            }
        )


def drive_address(
    target: data.View, config: Config, *, source: Value | int, addr: Value, length: Value
) -> list:
    """Assignments for a payload of AR or AW: INCR, full-width beats, normal bufferable memory.

    ``length``: beats less one.
    """
    return [
        target.id.eq(source),
        target.addr.eq(addr),
        target.len.eq(length),
        target.size.eq(config.bus_bytes.bit_length() - 1),
        target.burst.eq(_INCR),
        target.lock.eq(0),
        target.cache.eq(_MODIFIABLE_BUFFERABLE),
        target.prot.eq(0),
        target.qos.eq(0),
    ]


# Flat ports, as integrators name them.


@dataclass(frozen=True)
class FlatPort:
    """One port of the top: ``name`` such as m_axi_araddr; which signal of the interface it is."""

    name: str
    flow: wiring.Flow
    width: int
    channel: str
    field: str

    def of(self, interface) -> Value:
        """The signal of ``interface`` that this port carries."""
        channel = getattr(interface, self.channel)
        if self.field in ("valid", "ready"):
            return getattr(channel, self.field)
        return Value.cast(channel.payload[self.field])


def flat_ports(prefix: str, signature: wiring.Signature) -> list[FlatPort]:
    """Ports such as ``m_axi_araddr``, ``m_axi_arvalid`` for an AXI signature, in its direction.

    ``flat_ports("m_axi", AXI4Read(config))`` for a master, ``flat_ports("s_axil",
    AXI4Lite().flip())`` for a slave. In the payloads of ``signature`` every member is a stream of a
    struct.
    """
    ports = []
    for channel, member in signature.members.items():
        inner = member.signature
        away, back = member.flow, member.flow.flip()
        for field, place in inner.members["payload"].shape:
            width = Shape.cast(place.shape).width
            ports.append(FlatPort(f"{prefix}_{channel}{field}", away, width, channel, field))
        ports.append(FlatPort(f"{prefix}_{channel}valid", away, 1, channel, "valid"))
        ports.append(FlatPort(f"{prefix}_{channel}ready", back, 1, channel, "ready"))
    return ports


def flat_members(prefix: str, signature: wiring.Signature) -> dict[str, wiring.Member]:
    """``flat_ports`` as members for the signature of a top component."""
    return {port.name: port.flow(unsigned(port.width)) for port in flat_ports(prefix, signature)}


def connect_flat(m: Module, top: wiring.Component, prefix: str, inner) -> None:
    """Connect the flat ports of ``top`` to the AXI interface ``inner`` of one of its submodules."""
    for port in flat_ports(prefix, inner.signature):
        outer = getattr(top, port.name)
        if port.flow is Out:
            m.d.comb += outer.eq(port.of(inner))
        else:
            m.d.comb += port.of(inner).eq(outer)


def attach_flat(
    m: Module, inside: wiring.Component, prefix: str, signature: wiring.Signature
) -> wiring.PureInterface:
    """The flat ports of ``inside``, a submodule, as an AXI interface: its master for ``AXI4Read``.

    ``signature`` is the one that the ports were made with, in the direction of ``inside``.
    """
    interface = signature.create(path=(prefix,))
    for port in flat_ports(prefix, signature):
        flat = getattr(inside, port.name)
        if port.flow is Out:
            m.d.comb += port.of(interface).eq(flat)
        else:
            m.d.comb += flat.eq(port.of(interface))
    return interface


# Reads inside the machine.


def read_request() -> data.StructLayout:
    """A burst: ``beats`` (1..256) full-width beats from ``addr``, within one 4 KiB page."""
    return data.StructLayout({"addr": ADDRESS_BITS, "beats": 9})


class ReadClient(wiring.Signature):
    """A reader of memory, seen from the reader.

    Members
    -------
    requests : stream of {addr, beats}, out
        Bursts; the reader keeps them within 4 KiB and ``max_burst``.
    data : stream of {data, error, last}, in
        The beats of all requests in order; ``last`` ends a request, ``error`` is SLVERR or DECERR.
        The reader must take them without waiting for another reader's data.
    """

    def __init__(self, config: Config) -> None:
        beat = data.StructLayout({"data": 8 * config.bus_bytes, "error": 1, "last": 1})
        super().__init__(
            {"requests": Out(stream.Signature(read_request())), "data": In(stream.Signature(beat))}
        )


class ReadArbiter(wiring.Component):
    """Lets several readers share the AXI read channels; the ID of a burst is its reader's index.

    Requests are taken one per cycle, reader 0 first, and appear on AR one cycle later. Beats are
    routed by ID without delay (bursts of different readers may be interleaved). There is no limit
    on bursts in flight: that is up to the readers. No combinational path from ``ready`` to
    ``valid``.

    Members
    -------
    clients : array of ``ReadClient``, in
    axi : ``AXI4Read``, out
    beat : out, 1
        A beat was taken.
    """

    def __init__(self, config: Config, clients: int = 2) -> None:
        if not 1 <= clients <= 1 << ID_BITS:
            raise ValueError(f"Clients must be from 1 to {1 << ID_BITS}, not {clients!r}")
        self.config = config
        super().__init__(
            {
                "clients": In(ReadClient(config)).array(clients),
                "axi": Out(AXI4Read(config)),
                "beat": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        free = Signal()
        valid = Signal()
        taken = Signal(read_request())
        source = Signal(ID_BITS)
        m.d.comb += [
            free.eq(~valid | self.axi.ar.ready),
            self.axi.ar.valid.eq(valid),
            *drive_address(
                self.axi.ar.payload,
                self.config,
                source=source,
                addr=taken.addr,
                length=(taken.beats - 1)[:8],
            ),
        ]
        with m.If(free):
            m.d.sync += valid.eq(0)
            # The last assignment wins: the first client has priority.
            for index, client in reversed(list(enumerate(self.clients))):
                with m.If(client.requests.valid):
                    m.d.sync += [
                        valid.eq(1),
                        taken.eq(client.requests.payload),
                        source.eq(index),
                    ]
        earlier: Value = Const(0, 1)
        for client in self.clients:
            m.d.comb += client.requests.ready.eq(free & ~earlier)
            earlier = earlier | client.requests.valid
        with m.Switch(self.axi.r.payload.id):
            for index, client in enumerate(self.clients):
                m.d.comb += [
                    client.data.payload.data.eq(self.axi.r.payload.data),
                    client.data.payload.error.eq(self.axi.r.payload.resp[1]),
                    client.data.payload.last.eq(self.axi.r.payload.last),
                ]
                with m.Case(index):
                    m.d.comb += [
                        client.data.valid.eq(self.axi.r.valid),
                        self.axi.r.ready.eq(client.data.ready),
                    ]
        m.d.comb += self.beat.eq(self.axi.r.valid & self.axi.r.ready)
        return m


class BurstSplitter(wiring.Component):
    """Cuts 2-D strided jobs into bursts at 4 KiB boundaries and after ``max_burst`` beats.

    One burst a cycle, across rows and jobs; the first one cycle after its job was taken.

    Parameters
    ----------
    beat_bits : int
        Bits that count the beats of a row.
    tag : shape
        What a job tells its bursts.

    Members
    -------
    jobs : stream of {addr, stride, beats, rows, tag}, in
        ``rows`` (at least 1) rows of ``beats`` (at least 1) full-width beats; row i starts at
        ``addr + i * stride``, both multiples of the bus width. ``ready`` depends on
        ``bursts.ready``.
    bursts : stream of {addr, len, tag, final}, out
        ``len``: beats less one, as on AXI. ``final``: the job's last.
    """

    def __init__(self, config: Config, beat_bits: int, tag) -> None:
        self.config = config
        self.beat_bits = beat_bits
        job = data.StructLayout(
            {
                "addr": ADDRESS_BITS,
                "stride": ADDRESS_BITS,
                "beats": beat_bits,
                "rows": 16,
                "tag": tag,
            }
        )
        burst = data.StructLayout({"addr": ADDRESS_BITS, "len": 8, "tag": tag, "final": 1})
        super().__init__(
            {"jobs": In(stream.Signature(job)), "bursts": Out(stream.Signature(burst))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        size = self.config.bus_bytes.bit_length() - 1
        page_beats = PAGE_BYTES // self.config.bus_bytes
        page_bits = page_beats.bit_length() - 1
        longest = min(self.config.max_burst, page_beats)

        active = Signal()
        job = Signal.like(self.jobs.payload, reset_less=True)
        page = Signal(ADDRESS_BITS - 12, reset_less=True)
        offset = Signal(page_bits, reset_less=True)
        """Beat within the page."""
        rest = Signal(self.beat_bits, reset_less=True)
        """Beats that are left of the row, less one."""
        rows_left = Signal(16, reset_less=True)
        last_row = Signal(reset_less=True)
        next_row = Signal(ADDRESS_BITS, reset_less=True)

        # A row of beats ends here if it fits into the page and into a burst. Else the burst goes to
        # the end of the page, if that is near enough. Both are found a burst ahead.
        row_ends, page_ends = Signal(reset_less=True), Signal(reset_less=True)
        reach = Signal(range((1 << self.beat_bits) + page_beats))
        beyond = Signal(self.beat_bits)
        final = Signal()

        def begin(address: Value, beats: Value) -> list:
            """The first burst of a row."""
            beat = address[size : size + page_bits]
            return [
                Cat(offset, page).eq(address[size:]),
                rest.eq(beats - 1),
                row_ends.eq((beat + beats <= page_beats) & (beats <= longest)),
                page_ends.eq(beat >= page_beats - longest),
            ]

        m.d.comb += [
            reach.eq(offset + rest),
            beyond.eq(reach - page_beats),
            final.eq(row_ends & last_row),
            self.bursts.valid.eq(active),
            self.bursts.payload.addr[:size].eq(0),
            self.bursts.payload.addr[size:].eq(Cat(offset, page)),
            self.bursts.payload.len.eq(Mux(row_ends, rest, Mux(page_ends, ~offset, longest - 1))),
            self.bursts.payload.tag.eq(job.tag),
            self.bursts.payload.final.eq(final),
            self.jobs.ready.eq(~active | (final & self.bursts.ready)),
        ]
        with m.If(active & self.bursts.ready):
            with m.If(row_ends):
                m.d.sync += [
                    *begin(next_row, job.beats),
                    next_row.eq(next_row + job.stride),
                    rows_left.eq(rows_left - 1),
                    last_row.eq(rows_left == 2),
                ]
            with m.Elif(page_ends):
                m.d.sync += [
                    offset.eq(0),
                    page.eq(page + 1),
                    rest.eq(beyond),
                    row_ends.eq(beyond < longest),
                    page_ends.eq(longest == page_beats),
                ]
            with m.Else():
                m.d.sync += [
                    offset.eq(offset + longest),
                    rest.eq(rest - longest),
                    row_ends.eq((reach < page_beats) & (rest < 2 * longest)),
                    page_ends.eq(offset >= page_beats - 2 * longest),
                ]
        with m.If(self.jobs.ready):
            m.d.sync += active.eq(self.jobs.valid)
            with m.If(self.jobs.valid):
                m.d.sync += [
                    job.eq(self.jobs.payload),
                    *begin(self.jobs.payload.addr, self.jobs.payload.beats),
                    next_row.eq(self.jobs.payload.addr + self.jobs.payload.stride),
                    rows_left.eq(self.jobs.payload.rows),
                    last_row.eq(self.jobs.payload.rows == 1),
                ]
        return m
