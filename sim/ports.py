"""The ports of a Verilog module, and a test top that makes the module's clock inside the
simulation.

Only what tests need is parsed: module headers and declarations in the styles of Yosys (names in the
header, directions in the body) and of ANSI SystemVerilog. Types other than vectors are not
understood.
"""

import re
from dataclasses import dataclass

from systolith.errors import UserError

# The clock of a self-clocked top: 100 MHz, low at first; `runner.start()` looks for `self_clocked`.
CLOCK = ("  initial clk = 0;", "  always #5 clk = !clk;", "  assign self_clocked = 1;")


@dataclass(frozen=True)
class Port:
    """One port: direction is "input", "output" or "inout"; range is "" for one bit, or "[7:0]"."""

    name: str
    direction: str
    range: str

    @property
    def width(self) -> int:
        """Number of bits. Raises ValueError if the range is not two numbers."""
        if not self.range:
            return 1
        bounds = re.fullmatch(r"\[\s*(\d+)\s*:\s*(\d+)\s*\]", self.range)
        if bounds is None:
            raise ValueError(f"Range of port {self.name} must be constant, not {self.range}")
        return abs(int(bounds[1]) - int(bounds[2])) + 1

    @property
    def checked_range(self) -> str:
        """The range and a space, or nothing; only constants mean the same in another module."""
        return f"{self.range} " if self.range and self.width else ""


def parse_ports(verilog: str, module: str) -> tuple[Port, ...]:
    """The ports of `module`, in order. Raises `UserError` if there is no such module."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|\(\*(?!\)).*?\*\)", " ", verilog, flags=re.DOTALL)
    found = re.search(rf"\bmodule\s+\\?{re.escape(module)}\b(.*?)\bendmodule\b", text, re.DOTALL)
    if found is None:
        raise UserError(f"the Verilog has no module named {module!r}")
    header = found[1].partition(";")[0]
    if re.search(r"\b(?:input|output|inout)\b", header):
        text = header[: header.rfind(")")]
    else:  # Yosys, Verilog 1995
        text = re.sub(r"\b(function|task)\b.*?\bend\1\b", " ", found[1], flags=re.DOTALL)
    ports: dict[str, Port] = {}
    # A declaration runs from its direction to the next one, or to `;`.
    for declaration in re.finditer(
        r"\b(input|output|inout)\b((?:(?!\b(?:input|output|inout)\b)[^;])*)", text
    ):
        packed = re.search(r"\[[^\]]*\]", declaration[2])
        body = re.sub(r"\[[^\]]*\]", " ", declaration[2])
        for item in body.split(","):
            words = re.findall(r"\\\S+|[A-Za-z_]\w*", item.split("=")[0])
            if words:
                name = words[-1].lstrip("\\")
                ports[name] = Port(name, declaration[1], packed[0] if packed else "")
    return tuple(ports.values())


def clocked_top(verilog: str, module: str, *, clock: str = "clk") -> tuple[str, str]:
    """Wrap `module` so that its clock toggles inside the simulated design: (all the text, new top).

    The new top `clocked_<module>` has the same ports, except that `clock` is an output (100 MHz)
    and that `self_clocked` tells `runner.start()` not to drive it. Measured on a free-running
    counter: 4.4 M cycles/s, against 1.6 M with cocotb's C++ clock on a port, which costs 0.4 us per
    cycle. Values read right after `RisingEdge` are then those after the edge, not before: read in
    `ReadOnly`, as `stimulus.py` does. Bus models that do not (cocotbext-axi) need a driven clock.

        made = build(*clocked_top(amaranth_verilog(core, "core"), "core"))
    """
    ports = parse_ports(verilog, module)
    if clock not in {port.name for port in ports}:
        raise UserError(f"module {module!r} has no clock port named {clock!r}")
    declared = [
        f"  {port.direction} wire {port.checked_range}{port.name}"
        for port in ports
        if port.name != clock
    ]
    declared += [f"  output reg {clock}", "  output wire self_clocked"]
    wrapper = [
        f"module clocked_{module} (",
        ",\n".join(declared),
        ");",
        *(line.replace("clk", clock) for line in CLOCK[:2]),
        CLOCK[2],
        f"  {module} dut (",
        ",\n".join(f"    .{port.name}({port.name})" for port in ports),
        "  );",
        "endmodule",
    ]
    return verilog + "\n" + "\n".join(wrapper) + "\n", f"clocked_{module}"
