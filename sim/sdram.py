"""The behavioural SDRAM chip from Python: a test top around a controller, and its controls.

text, top = sdram_top(amaranth_verilog(core, "core"), "core", ULX3S_SDRAM, 80e6)
made = build(text, top, sources=[SDRAM_CHIP])
...
chip = Chip(dut)                        # in the bench
await chip.load(image, 0)
...
assert await chip.dump(0x1000, 64) == expected
chip.check()
"""

from pathlib import Path
from typing import Any

from systolith.errors import UserError
from systolith.hdl.sdram_chip import SdramChip
from systolith.sim.ports import CLOCK, Port, parse_ports

SDRAM_CHIP = Path(__file__).resolve().with_name("sdram_chip.sv")
RULES = {
    1: "command during power-up",
    2: "initialisation incomplete",
    3: "ACTIVE on an open bank",
    4: "READ or WRITE on an idle bank",
    5: "tRCD",
    6: "tRP",
    7: "tRAS",
    8: "tRC",
    9: "tRRD",
    10: "tRFC",
    11: "tWR",
    12: "REFRESH or LOAD MODE while a bank is open",
    13: "tMRD",
    14: "refresh too late",
    15: "CAS latency is too short for the clock",
    16: "DQ driven by both sides",
    17: "DQ not driven in a WRITE",
    18: "mode or command that is not modelled",
    19: "address beyond the row or column",
    20: "DQ handed over without a cycle between",
    21: "tRAS maximum",
}
COUNTERS = ("words_read", "words_written", "activations", "refreshes", "owed_most")
_PINS = {
    "cke": "cke", "cs_n": "cs_n", "ras_n": "ras_n", "cas_n": "cas_n", "we_n": "we_n", "ba": "ba",
    "a": "a", "dqm": "dqm", "dq_i": "dq_o", "dq_driven": "dq_oe", "dq_o": "dq_i",
}  # fmt: skip
"""Port of the chip: pin of the controller, without its prefix."""


def chip_parameters(chip: SdramChip, clock_hz: float) -> dict[str, int]:
    """Parameters of ``sdram_chip.sv`` for a chip whose clock is ``clock_hz``."""
    times = ("rcd", "rp", "ras", "rc", "rrd", "rfc", "wr", "refi", "power_up")
    return {
        "ROW_BITS": (chip.rows - 1).bit_length(),
        "COLUMN_BITS": (chip.columns - 1).bit_length(),
        "BANK_BITS": (chip.banks - 1).bit_length(),
        "DATA_BITS": chip.data_bits,
        "ADDRESS_BITS": chip.address_bits,
        "PERIOD_PS": round(1e12 / clock_hz),
        "T_CK2": round(1e6 / chip.cl2_mhz),
        "T_CK3": round(1e6 / chip.cl3_mhz),
        **{f"T_{name.upper()}": round(1e3 * getattr(chip, f"t_{name}")) for name in times},
        "MODE_CYCLES": chip.mode_cycles,
        "INIT_REFRESHES": chip.init_refreshes,
    }


def sdram_top(
    verilog: str,
    module: str,
    chip: SdramChip,
    clock_hz: float,
    *,
    inverted: bool = False,
    clock_inside: bool = False,
) -> tuple[str, str]:
    """Wraps ``module``, which has a controller's ``sdram_*`` pins, with a chip: (text, new top).

    The top ``sdram_<module>`` has the other ports, and the chip's controls and counters with
    ``chip_`` before their names. ``inverted``: the chip's clock is the inverse of ``clk``.
    ``clock_inside``: ``clk`` toggles by itself and is an output, with ``self_clocked``.
    """
    ports = parse_ports(verilog, module)
    pins = {port.name: port for port in ports if port.name.startswith("sdram_")}
    for name in _PINS.values():
        if f"sdram_{name}" not in pins:
            raise UserError(f"module {module!r} has no port named {'sdram_' + name!r}")
    outer = [port for port in ports if port.name not in pins and port.name != "clk"]
    inner = parse_ports(SDRAM_CHIP.read_text(), "sdram_chip")
    control = [
        Port(f"chip_{port.name}", port.direction, port.range)
        for port in inner
        if port.name not in _PINS and port.name != "clk"
    ]
    declared = [f"  {p.direction} wire {p.checked_range}{p.name}" for p in (*outer, *control)]
    clock = ["  output reg clk", "  output wire self_clocked"]
    declared += clock if clock_inside else ["  input wire clk"]
    parameters = ", ".join(f".{k}({v})" for k, v in chip_parameters(chip, clock_hz).items())
    connections = [f".clk({'~clk' if inverted else 'clk'})"]
    connections += [f".{name}(sdram_{pin})" for name, pin in _PINS.items()]
    connections += [f".{port.name.removeprefix('chip_')}({port.name})" for port in control]
    lines = [
        f"module sdram_{module} (",
        ",\n".join(declared),
        ");",
        *(f"  wire {port.checked_range}{port.name};" for port in pins.values()),
        *(CLOCK if clock_inside else ()),
        f"  {module} dut (",
        ",\n".join(f"    .{port.name}({port.name})" for port in ports),
        "  );",
        f"  sdram_chip #({parameters}) chip (",
        ",\n".join(f"    {connection}" for connection in connections),
        "  );",
        "endmodule",
    ]
    return verilog + "\n" + "\n".join(lines) + "\n", f"sdram_{module}"


class Chip:
    """Controls of one ``sdram_chip`` in a bench. ``prefix``: of its control ports on ``dut``."""

    def __init__(self, dut: Any, prefix: str = "chip_") -> None:
        self._dut = dut
        self._prefix = prefix
        for name in ("load_go", "dump_go", "file_address", "file_length"):
            self._port(name).value = 0

    def _port(self, name: str) -> Any:
        return getattr(self._dut, self._prefix + name)

    async def load(self, data: bytes, address: int) -> None:
        """Puts bytes into the chip; takes a clock cycle or two. See the file for their order."""
        Path("sdram_load.bin").write_bytes(data)
        count = await self._transfer("load_go", address, len(data))
        assert count == len(data), f"loaded {count} of {len(data)} bytes at {address:#x}"

    async def dump(self, address: int, length: int) -> bytes:
        """Bytes of the chip; takes a clock cycle or two."""
        count = await self._transfer("dump_go", address, length)
        assert count == length, f"dumped {count} of {length} bytes at {address:#x}"
        return Path("sdram_dump.bin").read_bytes()

    async def _transfer(self, go: str, address: int, length: int) -> int:
        from cocotb.triggers import FallingEdge, RisingEdge

        # From one falling edge to the next there is one edge of either clock.
        await FallingEdge(self._dut.clk)
        self._port("file_address").value = int(address)
        self._port("file_length").value = int(length)
        self._port(go).value = 1
        await FallingEdge(self._dut.clk)
        self._port(go).value = 0
        await RisingEdge(self._dut.clk)
        await FallingEdge(self._dut.clk)
        return int(self._port("file_count").value)

    def counters(self) -> dict[str, int]:
        """What the chip has counted since the start, by the names of ``COUNTERS``."""
        return {name: int(self._port(name).value) for name in COUNTERS}

    def check(self) -> None:
        """Fails with the rule's name if the controller has broken one."""
        code = int(self._port("error").value)
        if code:
            cycle = int(self._port("error_cycle").value)
            raise AssertionError(f"SDRAM: {RULES[code]}, in the chip's cycle {cycle}")
