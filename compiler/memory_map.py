"""What memory and local memories hold for a program, by kind."""

from systolith.isa import INSTRUCTION_BYTES
from systolith.program import Program

_KINDS = (
    ("weights", lambda name: name.endswith(" weights")),
    ("parameters", lambda name: name.endswith(" parameters")),
    ("function tables", lambda name: name.startswith("table ")),
    ("keys, values and tensors between passes", lambda name: _is_kept(name)),
    ("logits", lambda name: name == "logits"),
    ("inputs and outputs", lambda name: name.startswith(("index ", "given ", "output "))),
    ("control and tokens", lambda name: name in ("control", "tokens")),
)


def _is_kept(name: str) -> bool:
    return name.endswith(" cache") or name.startswith(("cached ", "spilled "))


def memory_map(program: Program) -> dict[str, tuple[int, int]]:
    """Kind → how many regions, and their bytes; with the code in front and the total at the end."""
    found = {"code": (1, program.instructions * INSTRUCTION_BYTES)}
    for name, symbol in program.symbols.items():
        kind = next((kind for kind, is_one in _KINDS if is_one(name)), "embeddings and RoPE")
        count, size = found.get(kind, (0, 0))
        found[kind] = count + 1, size + symbol.size
    found["all, with gaps"] = len(program.symbols) + 1, program.memory_bytes
    return found


def on_chip_map(program: Program) -> dict[str, tuple[int, int]]:
    """Use of the activation and weight memories → rows of ``dim`` bytes, and of how many.

    Nothing for a program whose producer does not say. Uses without a row are left out.
    """
    config = program.config
    return {
        use: (rows, config.activation_rows if use.startswith("activations") else config.weight_rows)
        for use, rows in program.metadata.get("on_chip", {}).items()
        if rows
    }
