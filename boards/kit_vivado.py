"""Vivado projects: the machine as a packaged IP in a block design for a board.

Generated from the manifest, linted (tests/boards/test_kit_vivado.py), and not tried on Vivado,
which is no open tool. Zynq: the processor's GP0 port drives the registers, the machine uses the DDR
memory by HP0. Artix: a JTAG-to-AXI master drives the registers, and the memory is block RAM.

Pins of Arty A7: Digilent's Arty-A7 master XDC. Pins of PYNQ: the boards' master XDC.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from systolith import registers
from systolith.errors import UserError

VENDOR, LIBRARY, NAME, VERSION = "systolith", "accelerator", "systolith_ip", "1.0"
REGISTER_RANGE = 4096
_ACCESS = {"read": "read-only", "read_write": "read-write", "command": "write-only"}
_BUSES = {"m_axi_": "M_AXI", "s_axil_": "S_AXIL"}
_AXI = "xilinx.com:interface:aximm:1.0"
_HP_BITS = 64
"""Widest data of a high-performance port of the Zynq-7000."""


@dataclass(frozen=True)
class Target:
    """A board for Vivado.

    ``clock_mhz``: of the machine; modest, since nobody has placed and routed it there.
    ``memory_bytes``: of the memory that the machine reaches, at 0. ``registers``: address of the
    registers. ``program``: where the example puts a program. ``board_part``: of the vendor's board
    files, without the version of the file. ``pins``: by port of the design's top.
    """

    name: str
    title: str
    part: str
    zynq: bool
    memory_bytes: int
    registers: int
    program: int
    pins: dict[str, str] = field(default_factory=dict)
    board_part: str = ""
    clock_mhz: int = 50
    oscillator_mhz: int = 100


_ARTY_PINS = {"sys_clk": "E3", "reset_n": "C2", "irq_led": "H5"}
_LISTED = (
    Target("arty-a7-35", "Arty A7-35T", "xc7a35ticsg324-1L", False, 64 << 10, 0x4000_0000, 0,
           _ARTY_PINS),
    Target("arty-a7-100", "Arty A7-100T", "xc7a100tcsg324-1", False, 256 << 10, 0x4000_0000, 0,
           _ARTY_PINS),
    Target("pynq-z1", "PYNQ-Z1", "xc7z020clg400-1", True, 512 << 20, 0x43C0_0000, 0x1000_0000,
           {"irq_led": "R14"}, "www.digilentinc.com:pynq-z1:part0:"),
    Target("pynq-z2", "PYNQ-Z2", "xc7z020clg400-1", True, 512 << 20, 0x43C0_0000, 0x1000_0000,
           {"irq_led": "R14"}, "tul.com.tw:pynq-z2:part0:"),
)  # fmt: skip
TARGETS: dict[str, Target] = {target.name: target for target in _LISTED}
"""The boards, by name."""


def find_target(name: str) -> Target:
    """A board by its name; raises ``UserError`` that lists the known ones."""
    if name not in TARGETS:
        raise UserError(f"There is no Vivado target {name!r}: name one of {', '.join(TARGETS)}")
    return TARGETS[name]


def vivado_files(
    target: Target, described: dict[str, Any], render: Callable[..., str]
) -> Iterator[tuple[str, str]]:
    """Name and text of each file; ``described``: the machine's manifest."""
    config = described["configuration"]
    bits = 8 * config["bus_bytes"]
    if target.zynq:
        block_design, memory_bits = "block_design_zynq.tcl", min(bits, _HP_BITS)
    else:
        block_design, memory_bits = "block_design_artix.tcl", bits
    xdc = f"{target.name}.xdc"
    values: dict[str, Any] = {
        "title": target.title,
        "identifier": target.name.replace("-", "_"),
        "part": target.part,
        "board_part": target.board_part,
        "vendor": VENDOR,
        "library": LIBRARY,
        "ip_name": NAME,
        "ip_version": VERSION,
        "vlnv": f"{VENDOR}:{LIBRARY}:{NAME}:{VERSION}",
        "configuration": described["configuration_hash"],
        "dim": config["dim"],
        "xdc": xdc,
        "clock_mhz": target.clock_mhz,
        "oscillator_mhz": target.oscillator_mhz,
        "oscillator_hz": target.oscillator_mhz * 10**6,
        "period_ns": f"{1000 / target.oscillator_mhz:.3f}",
        "registers": f"{target.registers:#010x}",
        "register_range": REGISTER_RANGE,
        "memory_size": _size(target.memory_bytes),
        "memory_bytes": target.memory_bytes,
        "memory_bits": memory_bits,
        "hp_bits": max(memory_bits, 32),
        "pins": target.pins,
        "asynchronous": [port for port in target.pins if port != "sys_clk"],
        "config_voltage": not target.zynq,
    }
    yield (
        "systolith_ip.v",
        render(
            "vivado/systolith_ip.v.j2",
            configuration=described["configuration_hash"],
            ports=list(_wrapper_ports(described)),
            connected=[p["name"] for p in described["ports"] if p["name"] not in ("clk", "rst")],
        ),
    )
    yield (
        "package_ip.tcl",
        render(
            "vivado/package_ip.tcl.j2", **values | {"registers": list(_registers(described))}
        ),
    )
    yield "block_design.tcl", render(f"vivado/{block_design}.j2", **values)
    yield "project.tcl", render("vivado/project.tcl.j2", **values)
    yield xdc, render("vivado/board.xdc.j2", **values)
    if not target.zynq:
        yield "jtag.tcl", render("vivado/jtag.tcl.j2", **values | _jtag_values())


def _size(count: int) -> str:
    """Bytes as Vivado writes ranges of addresses."""
    return f"{count >> 20}M" if count >= 1 << 20 else f"{count >> 10}K"


def _jtag_values() -> dict[str, Any]:
    offsets = {register.name: f"{register.offset:#04x}" for register in registers.REGISTERS}
    return {
        "reg": offsets,
        "cycles_high": f"{registers.BY_NAME['CYCLES'].offset + 4:#04x}",
        "id": f"{registers.IDENTIFICATION:#010x}",
        "start": registers.CONTROL_START,
        "reset": registers.CONTROL_RESET,
        "busy": registers.STATUS_BUSY,
        "error": registers.STATUS_ERROR,
        "error_names": [error.name for error in registers.Error],
    }


def _registers(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for register in described["registers"]:
        yield register | {"bits": 8 * register["bytes"], "access": _ACCESS[register["access"]]}


def _wrapper_ports(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Ports of the IP with the attributes that Vivado's IP packager and Integrator read."""
    config = described["configuration"]
    m_axi = (
        f"XIL_INTERFACENAME M_AXI, PROTOCOL AXI4, DATA_WIDTH {8 * config['bus_bytes']}, "
        f"ADDR_WIDTH 32, ID_WIDTH 1, MAX_BURST_LENGTH {config['max_burst']}, "
        f"NUM_READ_OUTSTANDING {config['outstanding']}, "
        f"NUM_WRITE_OUTSTANDING {config['outstanding']}, SUPPORTS_NARROW_BURST 0"
    )
    s_axil = "XIL_INTERFACENAME S_AXIL, PROTOCOL AXI4LITE, DATA_WIDTH 32, ADDR_WIDTH 12"
    parameters = {"M_AXI": m_axi, "S_AXIL": s_axil}

    def port(name: str, direction: str, width: int, info: str, parameter: str = "") -> dict:
        attributes = [f'X_INTERFACE_INFO = "{info}"']
        if parameter:
            attributes.append(f'X_INTERFACE_PARAMETER = "{parameter}"')
        return {
            "name": name,
            "direction": direction,
            "range": f"[{width - 1}:0] " if width > 1 else "",
            "attributes": attributes,
        }

    yield port(
        "aclk", "input", 1, "xilinx.com:signal:clock:1.0 aclk CLK",
        "XIL_INTERFACENAME aclk, ASSOCIATED_BUSIF M_AXI:S_AXIL, ASSOCIATED_RESET aresetn",
    )  # fmt: skip
    yield port(
        "aresetn", "input", 1, "xilinx.com:signal:reset:1.0 aresetn RST",
        "XIL_INTERFACENAME aresetn, POLARITY ACTIVE_LOW",
    )  # fmt: skip
    for item in described["ports"]:
        name = item["name"]
        for prefix, bus in _BUSES.items():
            if name.startswith(prefix):
                signal = name.removeprefix(prefix).upper()
                info = f"{_AXI} {bus} {signal}"
                yield port(
                    name, item["direction"], item["width"], info, parameters.pop(bus, "")
                )
        if name == "irq":
            yield port(
                "irq", "output", 1, "xilinx.com:signal:interrupt:1.0 irq INTERRUPT",
                "XIL_INTERFACENAME irq, SENSITIVITY LEVEL_HIGH",
            )  # fmt: skip
