"""A board under Verilator: its top with clock and serial line, which is a pseudo-terminal.

    with SimulatedBoard(verilog, "systolith_board", Pins(clk="clk", rx="uart_rx", tx="uart_tx"),
                        bit_cycles=4) as port:
        device = Device.open(port)
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from systolith.sim.benches.board import HANDFUL, STOP
from systolith.sim.build import Build, build
from systolith.sim.ports import CLOCK, parse_ports
from systolith.sim.runner import BenchFailure, run

UART_PORT = Path(__file__).resolve().with_name("uart_port.sv")
_START_S = 60.0


@dataclass(frozen=True)
class Pins:
    """Names of the top's ports. ``busy``: an expression that is 1 while the machine works; the top
    is ``dut`` in it. ``tied``: values of other inputs. ``beside``: ports that modules of
    ``extra`` are connected to, by wires of their names."""

    clk: str
    rx: str
    tx: str
    busy: str
    tied: Mapping[str, str] = field(default_factory=dict)
    extra: str = ""
    beside: Sequence[str] = ()


def board_top(verilog: str, module: str, pins: Pins, bit_cycles: int) -> tuple[str, str]:
    """Wraps the top of a board with clock and ``uart_port``: (all the text, the new top)."""
    ports = {port.name: port for port in parse_ports(verilog, module)}
    joined = {pins.clk: "clk", pins.rx: "to_board", pins.tx: "from_board", **pins.tied}
    joined |= {name: name for name in pins.beside}
    wires = [f"  wire {ports[name].checked_range}{name};" for name in pins.beside]
    for name, port in ports.items():
        if name not in joined:
            joined[name] = "'0" if port.direction == "input" else ""
    line = parse_ports(UART_PORT.read_text().replace("8*HANDFUL-1", f"{8 * HANDFUL - 1}"),
                       "uart_port")  # fmt: skip
    inside = ("clk", "to_board", "from_board")
    outer = [port for port in line if port.name not in inside]
    declared = [f"  {p.direction} wire {p.checked_range}{p.name}" for p in outer]
    declared += ["  output reg clk", "  output wire self_clocked", "  output wire busy"]
    lines = [
        f"module simulated_{module} (",
        ",\n".join(declared),
        ");",
        "  wire to_board, from_board;",
        *wires,
        *CLOCK,
        f"  {module} dut (",
        ",\n".join(f"    .{name}({joined[name]})" for name in ports),
        "  );",
        f"  assign busy = {pins.busy};",
        f"  uart_port #(.CYCLES({bit_cycles}), .HANDFUL({HANDFUL})) line (",
        ",\n".join(f"    .{port.name}({port.name})" for port in line),
        "  );",
        pins.extra,
        "endmodule",
    ]
    return verilog + "\n" + "\n".join(lines) + "\n", f"simulated_{module}"


class SimulatedBoard:
    """Runs the simulation while the ``with`` block lasts; its value is the path of the port.

    ``sources``: Verilog files of what the top and ``pins.extra`` need. ``counts``: octets over the
    line, when it has ended. Raises ``BenchFailure`` where the simulation does not start, and in the
    end if it has failed meanwhile, for instance because a rule of the SDRAM was broken.
    """

    def __init__(
        self,
        verilog: str,
        module: str,
        pins: Pins,
        *,
        bit_cycles: int,
        reset_cycles: int = 100,
        sources: Sequence[Path] = (),
        defines: Mapping[str, object] | None = None,
    ) -> None:
        self.bit_cycles, self.reset_cycles = bit_cycles, reset_cycles
        self.text, self.top = board_top(verilog, module, pins, bit_cycles)
        self.sources, self.defines = [UART_PORT, *sources], defines
        self.counts: dict[str, int] = {}
        self._told: SimpleQueue[str | BaseException] = SimpleQueue()

    def build(self) -> Build:
        """The simulator, compiled if it is not in the cache."""
        return build(self.text, self.top, sources=self.sources, defines=self.defines)

    def __enter__(self) -> str:
        made = self.build()
        self._folder = TemporaryDirectory(prefix="systolith-board-")
        self._thread = threading.Thread(target=self._simulate, args=(made,), daemon=True)
        self._thread.start()
        try:
            answer = self._told.get(timeout=_START_S)
        except Empty:
            raise BenchFailure("The simulated board did not start") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def __exit__(self, *_: Any) -> None:
        Path(self._folder.name, STOP).touch()
        self._thread.join()
        self._folder.cleanup()
        if not self._told.empty():
            failure = self._told.get()
            assert isinstance(failure, BaseException)
            raise failure

    def _simulate(self, made: Build) -> None:
        def progress(item: dict[str, Any]) -> None:
            if "port" in item:
                self._told.put(item["port"])

        arguments = {"bit_cycles": self.bit_cycles, "reset_cycles": self.reset_cycles}
        try:
            self.counts = run(
                made,
                "board",
                arguments,
                directory=Path(self._folder.name),
                progress=progress,
                timeout_s=1 << 30,
            )
        except BaseException as error:
            self._told.put(error)
