"""Commands that run a model on data: run and embed."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from systolith.cli_backend import Backend, backend_options
from systolith.cli_counters import shares, show_table
from systolith.cli_load import load_artifact, vocabulary_of
from systolith.cli_options import (
    PROGRAM_SUFFIX,
    Step,
    check_output,
    steps,
)
from systolith.config import Config
from systolith.errors import UserError
from systolith.program import Program

if TYPE_CHECKING:
    from systolith.artifact import Artifact

MASK = "attention_mask"
Arrays = dict[str, NDArray[Any]]


def _lines(path: Path) -> list[str]:
    """The texts of a file, one a line; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise UserError(f"{path} is not text in UTF-8") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UserError(f"{path} holds no text")
    return texts


def read_arrays(path: Path, names: Sequence[str]) -> Arrays:
    """The arrays of a .npz file by their names, or that of a .npy file for the only input."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.ndarray):
                return {name: found[name] for name in found.files}
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or holds no plain arrays ({error})") from None
    if len(names) != 1:
        raise UserError(
            f"The model has the inputs {', '.join(names)}: give them by name in a .npz file"
        )
    return {names[0]: found}


def _tokens(artifact: "Artifact", model: str, texts: Sequence[str]) -> Arrays:
    """Texts as padded tokens and their mask, [B, T] both."""
    vocabulary, graph = vocabulary_of(artifact, model), artifact.graph
    if list(graph.indices) != ["tokens"]:
        raise UserError(f"{model} reads {', '.join(graph.indices)}: give them in a .npz file")
    rows = [vocabulary.encode(text, limit=graph.context) for text in texts]
    tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for index, row in enumerate(rows):
        tokens[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"tokens": tokens, MASK: mask}


def _is_array_file(path: Path) -> bool:
    return path.suffix in (".npy", ".npz")


def _run_program(
    path: Path, data: Path, backend: Backend, step: Step
) -> tuple[list[Arrays], dict[str, int], Config]:
    """The outputs of each sequence by a compiled program, the counters, the configuration."""
    from systolith.compiler.describe import input_names, results, sequences

    if backend.name == "golden":
        raise UserError("A program holds no graph: choose the backend machine, rtl or board")
    if not _is_array_file(data):
        raise UserError("A program has no vocabulary: give tokens as .npy or .npz")
    program = Program.load(path)
    read = sequences(program, read_arrays(data, input_names(program)))
    from systolith.sim.execute import Inputs, compare_outputs, run_sequences

    indices = program.metadata["indices"]
    inputs = [
        Inputs(
            length=len(next(iter(item.values()))),
            indices={name: x.tolist() for name, x in item.items() if name in indices},
            given={name: x for name, x in item.items() if name not in indices},
        )
        for item in read
    ]
    replace(backend, config=program.config).announce(f"{len(inputs)} sequences", step)
    runs = run_sequences(program, inputs, backend.executor)
    counters: dict[str, int] = {}
    if backend.has_counters:
        golden = run_sequences(program, inputs, "machine")
        for index, (run, reference) in enumerate(zip(runs, golden, strict=True)):
            compare_outputs(run.outputs, reference.outputs, f"Sequence {index}, ")
            for name, count in run.counters.items():
                counters[name] = counters.get(name, 0) + count
        step("all outputs equal the golden machine's, every bit")
    return [results(program, run.outputs) for run in runs], counters, program.config


def _run_model(
    model: str, data: Path, backend: Backend, step: Step
) -> tuple[list[Arrays], dict[str, int], Config]:
    """The same by a quantized model."""
    from systolith.compiler.describe import output_name
    from systolith.session import Session

    if not data.is_file():
        raise UserError(f"Cannot read {data}: there is no such file")
    artifact = load_artifact(model, None, step)
    session = Session(artifact, backend.config, backend.executor)
    graph = artifact.graph
    arrays = (
        read_arrays(data, session.inputs)
        if _is_array_file(data)
        else _tokens(artifact, model, _lines(data))
    )
    known = [name for name in session.inputs if name in arrays]
    for name in known:  # one sequence is a batch of one
        if arrays[name].ndim == (1 if name in graph.indices else 2):
            arrays[name] = arrays[name][None]
    if MASK in arrays:
        arrays[MASK] = np.atleast_2d(arrays[MASK])
    count = len(arrays[known[0]]) if known else 0
    backend.announce(f"{count} sequences", step)
    made = session(**arrays)
    if backend.name != "golden":
        step("all outputs equal the integer forward's, every bit")
    whole = dict(
        zip(
            [output_name(output) for output in graph.outputs],
            made if isinstance(made, tuple) else (made,),
            strict=True,
        )
    )
    ends = arrays[MASK].sum(axis=-1) if MASK in arrays else [None] * count
    pooled = {output_name(output): output.pool != "none" for output in graph.outputs}
    sequences = [
        {name: x[b] if pooled[name] else x[b, :end] for name, x in whole.items()}
        for b, end in enumerate(ends)
    ]
    return sequences, session.counters, backend.config


def _together(sequences: Sequence[Arrays]) -> Arrays:
    """Outputs in one array each, where all sequences are equally long; else numbered."""
    joined: Arrays = {}
    for name in sequences[0]:
        rows = [sequence[name] for sequence in sequences]
        if len({row.shape for row in rows}) == 1:
            joined[name] = np.stack(rows)
        else:
            joined |= {f"{name}.{index}": row for index, row in enumerate(rows)}
    return joined


def _report(counters: Mapping[str, int], count: int, config: Config, clock: float) -> None:
    cycles = counters["CYCLES"]
    show_table(
        [
            ("cycles", f"{cycles:,}"),
            ("cycles per sequence", f"{cycles / count:,.0f}"),
            (f"sequences/s at {clock:g} MHz", f"{count * clock * 1e6 / cycles:,.1f}"),
            *shares(counters, config),
        ],
        err=True,
    )


@click.command()
@click.argument("model")
@click.option(
    "--input",
    "data",
    required=True,
    type=click.Path(path_type=Path),
    help=".npy (the only input), .npz (inputs by name, perhaps attention_mask), or text, one "
    "sequence a line.",
)
@backend_options
@click.option("-o", "output", type=click.Path(path_type=Path), help="A .npz file for the outputs.")
def run(model: str, data: Path, backend: Backend, output: Path | None) -> None:
    """Run a quantized model or a compiled program on sequences.

    MODEL: a .slq file, a .slp file (which has its own configuration), or what `quantize` takes.
    """
    check_output(output, ".npz")
    step = steps()
    if model.endswith(PROGRAM_SUFFIX):
        sequences, counters, config = _run_program(Path(model), data, backend, step)
    else:
        sequences, counters, config = _run_model(model, data, backend, step)
    joined = _together(sequences)
    if output is not None:
        np.savez(output, **joined)
        click.echo(output)
    else:
        for name, x in joined.items():
            click.echo(f"{name} {list(x.shape)}, {x.min():.6g} to {x.max():.6g}")
    if counters:
        _report(counters, len(sequences), config, backend.clock)


@click.command()
@click.option("--text", "texts", multiple=True, help="A text; may be given several times.")
@click.option("--file", "file", type=click.Path(path_type=Path), help="Texts, one a line.")
@click.option("--model", default="minilm", show_default=True, help="A sentence model.")
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@backend_options
@click.option("--json", "as_json", is_flag=True, help="Texts, vectors and cosines as one object.")
@click.option("-o", "output", type=click.Path(path_type=Path), help="A .npy file for the vectors.")
def embed(
    texts: tuple[str, ...],
    file: Path | None,
    model: str,
    tokenizer: str | None,
    backend: Backend,
    as_json: bool,
    output: Path | None,
) -> None:
    """Vectors of texts by a sentence model, and how alike they are (cosines)."""
    check_output(output, ".npy")
    chosen = [*texts, *(_lines(file) if file is not None else [])]
    if not chosen:
        raise UserError("There is no text: give --text or --file")
    step = steps()
    artifact = load_artifact(model, tokenizer, step)
    from systolith.session import Session

    session = Session(artifact, backend.config, backend.executor)
    backend.announce(f"{len(chosen)} texts", step)
    vectors = session.embed(chosen)
    if backend.name != "golden":
        step("all outputs equal the integer forward's, every bit")
    if output is not None:
        np.save(output, vectors)
    lengths = np.linalg.norm(vectors, axis=1)
    cosines = vectors @ vectors.T / np.maximum(np.outer(lengths, lengths), 1e-12)
    if as_json:
        click.echo(
            json.dumps(
                {"texts": chosen, "vectors": vectors.tolist(), "cosines": cosines.tolist()}
            )
        )
    else:
        for row, text in zip(cosines, chosen, strict=True):
            click.echo("".join(f"{x:7.3f}" for x in row) + f"  {text}")
    if session.counters:
        _report(session.counters, len(chosen), backend.config, backend.clock)
