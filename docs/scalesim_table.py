"""Cycles of SCALE-Sim for matrix products, as a table for `docs/performance.md`.

    python -m venv scalesim && scalesim/bin/pip install scalesim==3.0.0 "numpy<2.3"
    systolith bench gemm --dim 16 --shape 64x64x64 … --json > ours.json
    scalesim/bin/python docs/scalesim_table.py --ours ours.json 64x64x64 …

SCALE-Sim has a Python of its own because its release needs an older numpy. It simulates a 16 × 16
array with each of its three dataflows; what it reports as "Total Cycles" in mode CALC is without
stalls: every operand is there when the array asks for it, nothing is loaded or drained.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DATAFLOWS = ("ws", "os", "is")
"""Weight, output and input stationary."""

CONFIG = """
[general]
run_name = run
[architecture_presets]
ArrayHeight = {dim}
ArrayWidth = {dim}
IfmapSramSzkB = 1024
FilterSramSzkB = 1024
OfmapSramSzkB = 1024
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {dataflow}
Bandwidth = 10
ReadRequestBuffer = 512
WriteRequestBuffer = 512
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""


def simulate(shape: tuple[int, int, int], dataflow: str, dim: int) -> int:
    """Cycles of one product (M, N, K) without stalls; raises what SCALE-Sim ends with."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.cfg").write_text(CONFIG.format(dim=dim, dataflow=dataflow))
        (folder / "shape.csv").write_text(f"layer,M,N,K,\nproduct,{','.join(map(str, shape))},\n")
        (folder / "layout.csv").write_text("layout\n")
        command = [sys.executable, "-m", "scalesim.scale", "-i", "gemm", "-s", "N", "-p", "out"]
        command += ["-c", "config.cfg", "-t", "shape.csv", "-l", "layout.csv"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"SCALE-Sim failed:\n{run.stderr}")
        with open(folder / "out" / "run" / "COMPUTE_REPORT.csv") as file:
            (row,) = csv.DictReader(file, skipinitialspace=True)
        return int(row["Total Cycles"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Cycles of SCALE-Sim for matrix products.")
    parser.add_argument("shapes", nargs="+", metavar="MxNxK")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--ours", type=Path, help="what `systolith bench gemm --json` printed")
    options = parser.parse_args()
    ours = {}
    if options.ours:
        for item in json.loads(options.ours.read_text()):
            ours[item["m"], item["n"], item["k"]] = item["cycles"]
    print("| M × N × K | weight stat. | output stat. | input stat. | best | this machine |")
    print("|---|---|---|---|---|---|")
    for text in options.shapes:
        m, n, k = (int(part) for part in text.lower().split("x"))
        cycles = [simulate((m, n, k), dataflow, options.dim) for dataflow in DATAFLOWS]
        mine = f"{ours[m, n, k]:,}" if (m, n, k) in ours else ""
        cells = [f"{m} × {n} × {k}", *(f"{c:,}" for c in (*cycles, min(cycles))), mine]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
