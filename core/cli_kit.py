"""The command that writes the integration kit."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from systolith.cli_options import PROGRAM_SUFFIX, Step, steps
from systolith.config import PRESETS, load_config
from systolith.errors import UserError
from systolith.program import Program

if TYPE_CHECKING:
    from systolith.boards.kit import PackedProgram

NEW_TOKENS = 8
"""What the example of a language model writes behind the prompt, if the context allows."""


@click.command()
@click.option(
    "--config",
    "config_name",
    help=f"Configuration: {', '.join(PRESETS)}, or a JSON file. Default: the program's, or small.",
)
@click.option("--target", help="Board for a Vivado project: arty-a7-35, pynq-z2, ...")
@click.option(
    "--program",
    "program_path",
    type=click.Path(path_type=Path),
    help="A .slp file: its image for C, and an example that runs it.",
)
@click.option(
    "--input",
    "data",
    type=click.Path(path_type=Path),
    help=".npy or .npz with one sequence (a language model's prompt): goes into the image, and the "
    "example compares the results with the golden machine's.",
)
@click.option("-o", "output", required=True, type=click.Path(path_type=Path), help="Folder.")
def kit(
    config_name: str | None,
    target: str | None,
    program_path: Path | None,
    data: Path | None,
    output: Path,
) -> None:
    """Write what other flows need: Verilog, C driver, FuseSoC, LiteX, Vivado."""
    if data is not None and program_path is None:
        raise UserError("--input belongs to a program: give --program, too")
    if target is not None:
        from systolith.boards.kit_vivado import find_target

        find_target(target)  # before anything that takes time
    step = steps()
    packed = None if program_path is None else _pack(program_path, data, step)
    if config_name is not None or packed is None:
        config = load_config(config_name or "small")
    else:
        config = packed.program.config
    from systolith.boards.kit import make_kit

    step(f"Verilog of the D = {config.dim} machine")
    for path in make_kit(config, output, target=target, program=packed):
        click.echo(path)


def _pack(path: Path, data: Path | None, step: Step) -> "PackedProgram":
    from systolith.boards.kit_program import PackedProgram

    if path.suffix != PROGRAM_SUFFIX:
        raise UserError(f"A program ends with {PROGRAM_SUFFIX}, not {path.name!r}: compile it")
    program = Program.load(path)
    if data is None:
        return PackedProgram(path.stem, program)
    memory, wanted = _with_input(program, data)
    from systolith.sim.machine import GoldenMachine

    packed = PackedProgram(path.stem, program, memory.copy())
    step("the program on the golden machine")
    GoldenMachine(program.config, memory).run()
    expected = {name: program.read(memory, name).tobytes() for name in wanted}
    return PackedProgram(path.stem, program, packed.memory, expected)


def _with_input(program: Program, data: Path) -> tuple[np.ndarray, list[str]]:
    """The program's memory with the input in it, and the regions of its results."""
    from systolith.cli_run import read_arrays

    memory = program.memory()
    if program.metadata.get("kind") == "decoder":
        from systolith.compiler.decoder import set_prompt

        arrays = read_arrays(data, ["tokens"])
        prompt = np.asarray(arrays.get("tokens", ()))
        if prompt.dtype.kind not in "iu" or prompt.ndim != 1:
            raise UserError(f"{data} must hold the prompt as integers [T], named tokens")
        vocabulary = program.metadata["vocabulary"]
        if prompt.size and not 0 <= prompt.min() <= prompt.max() < vocabulary:
            raise UserError(f"Tokens of {data} must be 0 to {vocabulary - 1}")
        total = min(len(prompt) + NEW_TOKENS, program.metadata["context"] + 1)
        set_prompt(program, memory, prompt.tolist(), total)
        return memory, ["tokens"]
    from systolith.compiler.describe import input_names, sequences
    from systolith.compiler.sequence import set_inputs

    found = sequences(program, read_arrays(data, input_names(program)))
    if len(found) != 1:
        raise UserError(f"{data} holds {len(found)} sequences: give one")
    indices = program.metadata["indices"]
    length = len(next(iter(found[0].values())))
    set_inputs(
        program,
        memory,
        length,
        {name: x.tolist() for name, x in found[0].items() if name in indices},
        {name: x for name, x in found[0].items() if name not in indices},
    )
    return memory, [f"output {name}" for name in program.metadata["outputs"]]
