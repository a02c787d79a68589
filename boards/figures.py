"""How fast a language model is on a board: cycles counted by the machine of the simulated board."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from systolith.boards.board import Board, bitstreams
from systolith.boards.catalog import find_board
from systolith.boards.device import Device
from systolith.boards.simulated import simulated_board
from systolith.compiler.decoder import compile_for
from systolith.config import Config
from systolith.errors import UserError
from systolith.graph import Graph
from systolith.sim.generate import counted_per_token

_PROMPT = (1, 2, 3, 4)
_FEW = 4
"""New tokens of the shorter text."""


@dataclass(frozen=True)
class Speed:
    """``cycles``: of a new token, the average over ``tokens`` of them; the prompt is not in it.
    ``context``: of the program."""

    cycles: float
    tokens: int
    context: int


def measure_speed(board: Board, config: Config, graph: Graph, tokens: int) -> Speed:
    """Writes two texts on the simulated board, one ``tokens`` tokens longer than the other.

    Every logit of both is compared with the integer forward. The program has the longest context
    that fits the board's memory.
    """
    program = compile_for(graph, config, board.memory_bytes)
    prompt = [t % graph.vocabulary for t in _PROMPT]
    with simulated_board(board.name, config) as port:
        device = Device.open(port, config=config)
        counted = counted_per_token(program, graph, prompt, (_FEW, _FEW + tokens), device)
        device.close()
    return Speed(counted["CYCLES"], tokens, program.metadata["context"])


def speed_at(
    board: Board, config: Config, clock_mhz: float, graph: Graph, tokens: int
) -> dict[str, Any]:
    """Tokens per second at a clock, for a report; ``problem`` where the model does not fit."""
    try:
        speed = measure_speed(board, config, graph, tokens)
    except UserError as error:
        return {"problem": str(error)}
    return {
        "cycles_per_token": round(speed.cycles),
        "tokens_per_second": round(clock_mhz * 1e6 / speed.cycles, 1),
        "context": speed.context,
        "tokens": speed.tokens,
    }


def built(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Manifests of the bitstreams that are there, or of the boards ``names``.

    Raises ``UserError`` where there is none.
    """
    found = {}
    for path in sorted(bitstreams().glob("*/manifest.json")):
        found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    for name in names:
        if find_board(name).name not in found:
            raise UserError(f"There is no bitstream of {name}: run systolith build --board {name}")
    if not found:
        raise UserError("There is no bitstream yet: run systolith build --board NAME")
    return [item for name, item in found.items() if not names or name in names]


def row(manifest: dict[str, Any], graph: Graph, tokens: int) -> dict[str, Any]:
    """A line of the table: what the bitstream takes, its clock, and the model's speed on it."""
    board, config = find_board(manifest["board"]), Config(**manifest["configuration"])
    report = manifest["report"]
    names = (
        "board", "preset", "dim", "lut", "ff", "dsp", "bram", "fmax_mhz", "clock_mhz", "seconds"
    )  # fmt: skip
    line = {name: report[name] for name in names}
    return line | speed_at(board, config, report["clock_mhz"], graph, tokens)


def markdown(rows: Sequence[dict[str, Any]], model: str) -> str:
    """The table for docs/boards.md."""
    lines = [
        "| board | preset | D | LUT | FF | DSP | RAM | MHz reached | MHz of the clock | build s "
        f"| cycles per token, {model} | tokens/s |",
        "|---" * 12 + "|",
    ]
    for item in rows:
        if "problem" in item:
            speed = f"{item['problem']} | "
        else:
            speed = f"{item['cycles_per_token']:,} | {item['tokens_per_second']:,}"
        lines.append(
            f"| `{item['board']}` | `{item['preset']}` | {item['dim']} | {item['lut']:,} | "
            f"{item['ff']:,} | {item['dsp']} | {item['bram']} | {item['fmax_mhz']} | "
            f"{item['clock_mhz']:g} | {item['seconds']:,.0f} | {speed} |"
        )
    return "\n".join(lines)
