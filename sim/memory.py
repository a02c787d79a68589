"""The behavioural AXI memory from Python: a test top around a design, and its controls in a bench.

`memory_top()` makes, as text, a top module that holds a design with an `m_axi_*` master, the memory
of `axi_memory.sv` on that master, and the clock. `AxiMemory` is the bench's handle on it:

    text, top = memory_top(amaranth_verilog(core, "core"), "core", size_bytes=1 << 20)
    made = build(text, top, sources=[AXI_MEMORY])
    ...
    memory = AxiMemory(dut)                 # in the bench
    memory.configure(latency=40, bandwidth=128)
    await memory.load(image, 0)
    ...
    assert await memory.dump(0x1000, 64) == expected
    memory.check_protocol()
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from systolith.errors import UserError
from systolith.sim.ports import CLOCK, Port, parse_ports

AXI_MEMORY = Path(__file__).resolve().with_name("axi_memory.sv")
SETTINGS = (
    "latency", "write_latency", "bandwidth", "stall_ar", "stall_r", "stall_aw", "stall_w",
    "stall_b", "stall_seed", "error_mode", "error_base", "error_size",
)  # fmt: skip
NEVER, SLVERR, DECERR = 1, 2, 3
_LOADED, _DUMPED = "axi_memory_load.bin", "axi_memory_dump.bin"
_CHANNELS = {1: "AR", 2: "AW", 3: "W"}
_RULES = {
    1: "burst crosses 4 KiB",
    2: "size beyond the bus",
    3: "burst type is not INCR",
    4: "valid dropped before ready",
    5: "payload changed while waiting",
    6: "narrow or unaligned burst",
    7: "WLAST not on the last beat",
    8: "WSTRB outside the beat's lanes",
}


def memory_top(
    verilog: str,
    module: str,
    *,
    size_bytes: int,
    prefix: str = "m_axi_",
    strict: bool = True,
    clock_inside: bool = True,
    inside: Sequence[str] = (),
) -> tuple[str, str]:
    """Wrap `module` with a clock and a memory on its AXI master: (all the text, the new top).

    size_bytes: of the memory, at address 0. prefix: of the master's ports. strict: narrow and
    unaligned bursts count as protocol errors. The top `memory_<module>` has the other ports of the
    module, `clk` and `self_clocked` as outputs, and the memory's controls and counters with `mem_`
    before their names. Compile it with `sources=[AXI_MEMORY]`. clock_inside: if not, `clk` is an
    input, for `runner.start()` to drive; cocotbext-axi on the module's other ports needs that.
    inside: further lines of the top, in which the module is `dut`.
    """
    ports = {port.name: port for port in parse_ports(verilog, module)}
    bus = {
        name.removeprefix(prefix): port for name, port in ports.items() if name.startswith(prefix)
    }
    for name in ("araddr", "rdata", "awaddr", "wdata"):
        if name not in bus:
            raise UserError(f"module {module!r} has no port named {prefix + name!r}")
    memory = {port.name: port for port in parse_ports(AXI_MEMORY.read_text(), "axi_memory")}
    widths = {"ADDR_WIDTH": bus["araddr"].width, "DATA_WIDTH": bus["rdata"].width}
    widths["ID_WIDTH"] = bus["arid"].width if "arid" in bus else 1
    outer = [port for name, port in ports.items() if not name.startswith(prefix) and name != "clk"]
    top_bit = str(widths["ADDR_WIDTH"] - 1)
    control = [
        Port(f"mem_{name}", port.direction, port.range.replace("ADDR_WIDTH-1", top_bit))
        for name, port in memory.items()
        if not name.startswith("s_axi_") and name not in ("clk", "rst")
    ]
    parameters = {**widths, "SIZE_BYTES": size_bytes, "STRICT": int(strict)}
    declared = [f"  {p.direction} wire {p.checked_range}{p.name}" for p in (*outer, *control)]
    clock = ["  output reg clk", "  output wire self_clocked"]
    declared += clock if clock_inside else ["  input wire clk"]
    wires = [
        f"  wire {port.checked_range}{port.name};" for port in bus.values() if port.name in ports
    ]
    inner = [f"    .{name}({name})" for name in ports]
    outside = {"clk": "clk", "rst": "rst" if "rst" in ports else "1'b0"}
    outside |= {port.name.removeprefix("mem_"): port.name for port in control}
    for name in memory:
        short = name.removeprefix("s_axi_")
        if short != name:
            outside[name] = bus[short].name if short in bus else _absent(memory[name])
    lines = [
        f"module memory_{module} (",
        ",\n".join(declared),
        ");",
        *wires,
        *(CLOCK if clock_inside else ()),
        f"  {module} dut (",
        ",\n".join(inner),
        "  );",
        "  axi_memory #(" + ", ".join(f".{k}({v})" for k, v in parameters.items()) + ") memory (",
        ",\n".join(f"    .{inside}({name})" for inside, name in outside.items()),
        "  );",
        *inside,
        "endmodule",
    ]
    return verilog + "\n" + "\n".join(lines) + "\n", f"memory_{module}"


def _absent(port: Port) -> str:
    """What to connect where the master lacks a signal: outputs float, the only inputs are IDs."""
    if port.direction == "input" and not port.name.endswith("id"):
        raise UserError(f"the AXI master lacks the signal {port.name.removeprefix('s_axi_')!r}")
    return "'0" if port.direction == "input" else ""


class AxiMemory:
    """Controls of one `axi_memory` in a bench. `prefix`: of its control ports on `dut`."""

    def __init__(self, dut: Any, prefix: str = "mem_") -> None:
        self._dut = dut
        self._prefix = prefix
        for name in (*SETTINGS, "load_go", "dump_go"):
            self._port(name).value = 0

    def _port(self, name: str) -> Any:
        return getattr(self._dut, self._prefix + name)

    def configure(self, **settings: int) -> None:
        """Set controls by name (see axi_memory.sv); the others keep their values."""
        for name, value in settings.items():
            if name not in SETTINGS:
                raise ValueError(f"Setting must be one of {', '.join(SETTINGS)}, not {name!r}")
            self._port(name).value = int(value)

    async def load(self, data: bytes, address: int) -> None:
        """Put bytes into the memory; takes one clock cycle."""
        Path(_LOADED).write_bytes(data)
        await self._load(address, len(data))

    async def load_file(self, path: Path, address: int) -> None:
        """Put a file's bytes into the memory, 140 MB a second; takes one clock cycle."""
        Path(_LOADED).unlink(missing_ok=True)
        Path(_LOADED).symlink_to(path.resolve())
        await self._load(address, path.stat().st_size)
        Path(_LOADED).unlink()

    async def _load(self, address: int, length: int) -> None:
        count = await self._transfer("load_go", address, length)
        assert count == length, f"loaded {count} of {length} bytes at {address:#x}"

    async def dump(self, address: int, length: int) -> bytes:
        """Bytes of the memory; takes one clock cycle."""
        path = Path(_DUMPED)
        await self.dump_file(path, address, length)
        data = path.read_bytes()
        path.unlink()
        return data

    async def dump_file(self, path: Path, address: int, length: int) -> None:
        """Bytes of the memory to a file, 30 MB a second; takes one clock cycle."""
        count = await self._transfer("dump_go", address, length)
        assert count == length, f"dumped {count} of {length} bytes at {address:#x}"
        os.replace(_DUMPED, path)

    async def _transfer(self, go: str, address: int, length: int) -> int:
        from cocotb.triggers import ReadOnly, RisingEdge

        self._port("file_address").value = int(address)
        self._port("file_length").value = int(length)
        self._port(go).value = 1
        await RisingEdge(self._dut.clk)
        self._port(go).value = 0
        await ReadOnly()
        count = int(self._port("file_count").value)
        await RisingEdge(self._dut.clk)
        return count

    def beats(self) -> tuple[int, int]:
        """Beats read and written since reset."""
        return int(self._port("read_beats").value), int(self._port("write_beats").value)

    def check_protocol(self) -> None:
        """Fail with the rule's name if the master has broken the protocol since reset."""
        code = int(self._port("protocol_error").value)
        if code:
            rule = _RULES.get(code & 15, "unknown rule")
            address = int(self._port("protocol_address").value)
            raise AssertionError(f"AXI protocol: {_CHANNELS[code >> 4]}: {rule}, at {address:#x}")
