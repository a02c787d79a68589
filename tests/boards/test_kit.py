"""The kit's files, and the command that writes it: contents, models that run, mistakes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import systolith.boards.kit as kit_module
from systolith import cli
from systolith.boards.kit import WAIVED, PackedProgram, kit_files, make_kit
from systolith.boards.kit_program import c_bytes, c_text, macro_names
from systolith.boards.kit_vivado import TARGETS
from systolith.compiler.decoder import compile_decoder, set_prompt
from systolith.compiler.describe import described
from systolith.compiler.sequence import compile_sequence
from systolith.config import PRESETS
from systolith.errors import UserError
from systolith.isa import ProgramError
from systolith.program import Program
from systolith.sim import machine_tb
from systolith.sim.build import WAIVED as WAIVED_IN_SIMULATION
from systolith.sim.machine import GoldenMachine
from systolith.sim.machine_tb import MachineSim
from systolith.sim.runner import run as run_bench
from tests.boards.c_driver import compile_library, compiler
from tests.boards.kit_case import CONFIG, product_case
from tests.compiler.test_decoder import random_graph
from tests.graphs import encoder

ALWAYS = {
    "systolith.v", "systolith.h", "manifest.json", "systolith.core", "systolith.vlt",
    "systolith_driver.h", "systolith_driver.c", "systolith_litex.py",
}  # fmt: skip
OF_PROGRAM = {"program_product.h", "program_product.c", "program_product.bin", "example.c"}

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, with the machine's Verilog from the cache."""
    monkeypatch.setattr(kit_module, "machine_verilog", machine_tb.verilog)

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])

    return call


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith("systolith: ") and "Traceback" not in result.stderr
    return sentence


@pytest.fixture(scope="module")
def encoder_program() -> Program:
    graph = encoder(1)
    return described(compile_sequence(graph, CONFIG, tokens=4), graph)


@pytest.fixture(scope="module")
def decoder_program() -> Program:
    return compile_decoder(random_graph(1, layers=1, context=16), CONFIG)


def save_inputs(program: Program, path: Path, tokens: int) -> None:
    """Random inputs of a sequence by the program's description."""
    rng = np.random.default_rng(1)
    arrays = {}
    for name, spec in program.metadata["model"]["inputs"].items():
        if "values" in spec:
            arrays[name] = rng.integers(0, spec["values"], tokens)
        else:
            arrays[name] = rng.normal(0, 5, (tokens, spec["channels"]))
    np.savez(path, **arrays)


# Files ------------------------------------------------------------------------------------------


def test_what_is_written(tmp_path: Path) -> None:
    packed = product_case(1)[0]
    text = machine_tb.verilog(CONFIG)
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / "systolith.v").write_text("old")
    paths = make_kit(CONFIG, tmp_path, target="pynq-z2", program=packed, verilog=text)
    names = {str(path.relative_to(tmp_path)) for path in paths}
    vivado = {f"vivado/{n}" for n in ("systolith_ip.v", "package_ip.tcl", "block_design.tcl",
                                      "project.tcl", "pynq-z2.xdc")}  # fmt: skip
    assert names == ALWAYS | OF_PROGRAM | vivado
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert there == names | {"mine.txt"}
    assert (tmp_path / "systolith.v").read_text() == text
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["verilog"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert (tmp_path / "program_product.bin").read_bytes() == packed.image
    for path in paths:
        content = path.read_text(errors="replace")
        assert "{{" not in content and "{%" not in content.replace("{%~", ""), path
    again = make_kit(CONFIG, tmp_path / "2", target="pynq-z2", program=packed, verilog=text)
    for first, second in zip(sorted(paths), sorted(again), strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


@pytest.mark.parametrize("target", [None, *TARGETS])
def test_every_target_and_none(target: str | None) -> None:
    files = kit_files(CONFIG, target=target, verilog="")
    assert {name for name in files if not name.startswith("vivado/")} == ALWAYS
    assert ("vivado/jtag.tcl" in files) == (target is not None and not TARGETS[target].zynq)
    assert any(name.startswith("vivado/") for name in files) == (target is not None)


def test_the_example_names_the_addresses_of_its_board() -> None:
    files = kit_files(CONFIG, target="pynq-z2", program=product_case(1)[0], verilog="")
    assert "-DSYSTOLITH_REGISTERS=0x43c00000 -DSYSTOLITH_MEMORY=0x10000000" in files["example.c"]


def test_waivers_are_those_of_the_simulation_and_two_of_lint() -> None:
    assert set(WAIVED) == {*WAIVED_IN_SIMULATION, "DECLFILENAME", "UNUSEDSIGNAL"}


def test_nothing_is_left_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .*file"):
        make_kit(CONFIG, tmp_path / "file", verilog="")
    (tmp_path / "kit" / "vivado").mkdir(parents=True)
    (tmp_path / "kit" / "systolith.v").mkdir()  # in the way
    with pytest.raises(UserError, match=r"Cannot write to .*kit: "):
        make_kit(CONFIG, tmp_path / "kit", verilog="")
    assert not list((tmp_path / "kit").glob(".systolith-*")), "no folder is left behind"


# Programs ---------------------------------------------------------------------------------------


def test_a_program_of_another_configuration() -> None:
    packed = product_case(1)[0]
    with pytest.raises(ProgramError, match="compiled for another configuration"):
        kit_files(PRESETS["small"], program=packed, verilog="")


@pytest.mark.parametrize("name", ["", "1st", "my-model", "größe", "a b", "x.y"])
def test_names_that_c_does_not_take(name: str) -> None:
    with pytest.raises(UserError, match="letters, digits and underscores for C, not "):
        PackedProgram(name, product_case(1)[0].program)


def test_names_of_regions() -> None:
    names = ["output 12", "index tokens", "index-tokens", "a.b/c", "é", "Index tokens"]
    wanted = ["OUTPUT_12", "INDEX_TOKENS", "INDEX_TOKENS_2", "A_B_C", "REGION", "INDEX_TOKENS_3"]
    assert macro_names(names) == wanted
    assert c_text('a"b\\c??/é\n') == r"a\042b\134c\077\077/\303\251\012"


def test_bytes_for_c() -> None:
    text = c_bytes(bytes(range(41)))
    assert text.count("\n") == 2
    assert [int(word) for word in text.replace(",", " ").split()] == list(range(41))


def test_expected_bytes_must_be_a_whole_region() -> None:
    packed = product_case(1)[0]
    with pytest.raises(ValueError, match=r"expected\['c0'\] must be the bytes of a region"):
        replace(packed, expected={"c0": b"1"})


def test_an_image_ends_with_its_last_byte() -> None:
    packed = product_case(1)[0]
    program = packed.program
    memory = np.zeros(program.memory_bytes, np.uint8)
    assert replace(packed, memory=memory).image == bytes(len(program.image))
    memory[-1] = 5
    assert replace(packed, memory=memory).image == memory.tobytes()
    assert replace(packed, memory=None).image == program.image


# The command ------------------------------------------------------------------------------------


def run_example(folder: Path, name: str, test: str = "whole_example") -> None:
    """The generated example on the RTL."""
    if compiler() is None:
        pytest.skip("there is no C compiler")
    compile_library(
        folder, ["systolith_driver.c", f"program_{name}.c", "example.c"], folder / "driver.so"
    )
    run_bench(
        MachineSim(CONFIG, size_bytes=1 << 16).build,
        "tests.boards.bench_kit_driver",
        {"library": str(folder / "driver.so")},
        test=test,
    )


def test_an_encoder_with_its_input(run: Run, tmp_path: Path, encoder_program: Program) -> None:
    """From .slp and .npz to C that runs on the RTL and finds the golden machine's bytes."""
    slp, data, out = tmp_path / "coder.slp", tmp_path / "in.npz", tmp_path / "kit"
    encoder_program.save(slp)
    save_inputs(encoder_program, data, 3)
    result = run("kit", "--program", slp, "--input", data, "-o", out)
    assert result.exit_code == 0, result.output
    assert str(out / "example.c") in result.stdout.split()
    assert (out / "systolith.h").read_text().count(f"{CONFIG.hash:#010x}") == 1
    assert "program_coder_expected" in (out / "program_coder.h").read_text()
    run_example(out, "coder")


def test_a_language_model_writes_behind_its_prompt(
    run: Run, tmp_path: Path, decoder_program: Program
) -> None:
    slp, data, out = tmp_path / "writer.slp", tmp_path / "prompt.npy", tmp_path / "kit"
    decoder_program.save(slp)
    np.save(data, np.array([1, 5, 7]))
    result = run("kit", "--config", "tiny", "--program", slp, "--input", data, "-o", out)
    assert result.exit_code == 0, result.output
    memory = decoder_program.memory()
    set_prompt(decoder_program, memory, [1, 5, 7], 11)
    GoldenMachine(CONFIG, memory).run()
    tokens = decoder_program.read(memory, "tokens").tobytes()
    assert c_bytes(tokens) in (out / "program_writer.c").read_text()
    run_example(out, "writer")


def test_without_input_the_example_has_nothing_to_compare(
    run: Run, tmp_path: Path, encoder_program: Program
) -> None:
    slp, out = tmp_path / "coder.slp", tmp_path / "kit"
    encoder_program.save(slp)
    assert run("kit", "--program", slp, "-o", out).exit_code == 0
    assert "expected" not in (out / "program_coder.h").read_text() + (out / "example.c").read_text()
    assert (out / "program_coder.bin").read_bytes() == encoder_program.image
    if compiler() is not None:
        compile_library(
            out, ["systolith_driver.c", "program_coder.c", "example.c"], tmp_path / "x.so"
        )


def test_the_default_is_small_without_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr(kit_module, "machine_verilog", lambda config: f"// {config.dim}\n")
    assert run("kit", "-o", tmp_path).exit_code == 0
    assert (tmp_path / "systolith.v").read_text() == "// 8\n"
    assert not (tmp_path / "example.c").exists()


def test_mistakes(run: Run, tmp_path: Path, encoder_program: Program,
                  decoder_program: Program) -> None:  # fmt: skip
    slp, lm, out = tmp_path / "coder.slp", tmp_path / "lm.slp", tmp_path / "kit"
    encoder_program.save(slp)
    decoder_program.save(lm)
    data, batch = tmp_path / "in.npz", tmp_path / "batch.npz"
    save_inputs(encoder_program, data, 3)
    np.savez(batch, **{name: np.stack([x, x]) for name, x in np.load(data).items()})
    prompt, wide, real = tmp_path / "p.npy", tmp_path / "w.npy", tmp_path / "r.npy"
    np.save(prompt, np.array([[1, 2]]))
    np.save(wide, np.array([37]))
    np.save(real, np.array([1.5]))
    strange = shutil.copy(slp, tmp_path / "my-model.slp")
    for arguments, message in [
        (("--input", data), "--input belongs to a program: give --program, too"),
        (("--target", "arty"), "There is no Vivado target 'arty': name one of arty-a7-35, "),
        (("--config", "nope"), "No configuration 'nope'"),
        (("--program", tmp_path / "no.slp"), "There is no program"),
        (("--program", data), "A program ends with .slp, not 'in.npz'"),
        (("--program", strange), "not 'my-model': rename the file"),
        (("--program", slp, "--config", "small"), "compiled for another configuration"),
        (("--program", slp, "--input", tmp_path / "no.npz"), "Cannot read"),
        (("--program", slp, "--input", batch), "holds 2 sequences: give one"),
        (("--program", slp, "--input", prompt), "give them by name in a .npz file"),
        (("--program", lm, "--input", prompt), "must hold the prompt as integers [T]"),
        (("--program", lm, "--input", wide), "must be 0 to 36"),
        (("--program", lm, "--input", real), "must hold the prompt as integers [T]"),
    ]:
        assert message in refused(run("kit", *arguments, "-o", out)), arguments
        assert not out.exists(), arguments
