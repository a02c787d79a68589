import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from systolith import cli


@pytest.fixture
def run():
    def call(*arguments: str):
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def checkpoint(tmp_path):
    """A small Llama checkpoint with random weights, and its vocabulary."""
    from dataclasses import asdict

    import torch

    from systolith.quant.llama import Llama, LlamaConfig
    from systolith.quant.tokenizer import Tokenizer

    torch.manual_seed(1)
    config = LlamaConfig(
        dim=16, hidden_dim=24, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=300, max_seq_len=32,
        tied_embedding=True,
    )  # fmt: skip
    assert asdict(config)["max_seq_len"] == 32
    folder = tmp_path / "model"
    folder.mkdir()
    model = Llama(config)
    tensors = {
        name: value.detach().numpy() for name, value in model.state_dict().items()
        if "lm_head" not in name and value.dim()
    }  # fmt: skip
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                "vocab_size": 300, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0, "tie_word_embeddings": True,
            }
        )
    )  # fmt: skip
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % i for i in range(256))]
    pieces += [b" "] + [b"%c" % c for c in range(97, 97 + 26)]
    pieces += [b"x%d" % i for i in range(300 - len(pieces))]
    Tokenizer(pieces, [0.0] * 300).save(folder / "tokenizer.bin")
    return folder


def one_sentence(result, tmp_path=None):
    """Exit code 2, nothing on stdout, one line that is not a traceback."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    sentence = lines[-1]
    assert sentence.startswith("systolith: ") and "Traceback" not in result.stderr
    assert sum(line.startswith("systolith: ") for line in lines) == 1
    return sentence


def test_text_on_both_golden_backends_is_the_same(run, checkpoint):
    golden = run("generate", "--model", checkpoint, "--prompt", "ab", "--tokens", "5")
    assert golden.exit_code == 0, golden.output
    machine = run(
        "generate", "--model", checkpoint, "--prompt", "ab", "--tokens", "5",
        "--backend", "machine", "--config", "tiny",
    )  # fmt: skip
    assert machine.exit_code == 0, machine.output
    assert machine.stdout == golden.stdout
    assert "5 tokens × 300 logits equal the golden forward, every bit" in machine.stderr


def test_sampled_text_and_where_it_ends(run, checkpoint):
    options = ("generate", "--model", checkpoint, "--prompt", "ab", "--temperature", "50",
               "--config", "tiny", "--tokens", "10")
    free = run(*options, "--seed", "3")
    assert free.exit_code == 0, free.output
    assert free.stdout != run(*options, "--seed", "4").stdout
    assert free.stdout == run(*options, "--seed", "3", "--backend", "machine").stdout
    piece = free.stdout[4:6]
    stopped = run(*options, "--seed", "3", "--stop", "never", "--stop", piece)
    assert free.stdout.startswith(stopped.stdout.rstrip("\n")) and piece in stopped.stdout
    assert len(stopped.stdout) < len(free.stdout)
    assert "the text ends by itself or at --stop" in stopped.stderr


def test_quantized_files_and_programs(run, checkpoint, tmp_path):
    slq, slp = tmp_path / "m.slq", tmp_path / "m.slp"
    assert run("quantize", checkpoint, "-o", slq).exit_code == 0
    result = run("compile", slq, "--config", "tiny", "-o", slp, "--listing")
    assert result.exit_code == 0 and "matmul" in result.stdout
    direct = run("generate", "--model", checkpoint, "--prompt", "ab", "--tokens", "3")
    stored = run("generate", "--model", slq, "--prompt", "ab", "--tokens", "3")
    assert direct.stdout == stored.stdout
    slq.write_bytes(slq.read_bytes()[:-7])
    one_sentence(run("generate", "--model", slq))


def test_a_budget_a_report_and_onnx(run, checkpoint, tmp_path):
    slq, page, onnx = tmp_path / "m.slq", tmp_path / "report.html", tmp_path / "m.onnx"
    text = tmp_path / "text.txt"
    text.write_text("some words to calibrate on " * 60)
    result = run("quantize", checkpoint, "--calibration", text, "--budget", "ppl=1.05",
                 "--context", "24", "-o", slq, "--report", page)
    assert result.exit_code == 0, result.output
    assert "ppl=1.05 is kept: perplexity ratio 1.0" in result.stdout
    assert "cycles of a 16 × 16 array for 24 tokens" in result.stdout
    assert "<table>" in page.read_text() and "model, quantized" in page.read_text()
    assert run("export", slq, "-o", onnx).exit_code == 0
    assert onnx.stat().st_size > 10_000
    out_of_reach = run("quantize", checkpoint, "--budget", "ppl=1.0000001", "-o",
                       tmp_path / "x.slq")
    assert "is out of reach" in one_sentence(out_of_reach)
    assert not (tmp_path / "x.slq").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("generate", "--model", "nowhere"), "nowhere does not exist"),
        (("generate", "--temperature", "-1"), "The temperature must be 0 or above, not -1.0"),
        (("generate", "--top-k", "-2"), "top_k must be at least 1, or 0 for all tokens, not -2"),
        (("generate", "--top-p", "0"), "top_p must be above 0 and at most 1, not 0.0"),
        (("generate", "--stop", ""), "A text to stop at must not be empty"),
        (("generate", "--config", "huge"), "name one of tiny, small, lean, resident, bench"),
        (("compile", "nowhere", "-o", "x.slp"), "nowhere does not exist"),
        (("quantize", "bundled", "-o", "x.bin"), "The output must end with .slq"),
        (("quantize", "bundled", "--budget", "1.005", "-o", "x.slq"), "A budget is cosine=NUMBER"),
        (("quantize", "bundled", "--calibration", "no.txt", "-o", "x.slq"), "Cannot read no.txt"),
        (("quantize", "bundled", "-o", "no/x.slq"), "There is no folder no to write x.slq to"),
        (("quantize", "bundled", "--pin", "*", "-o", "x.slq"), "--pin takes PATTERN=8 or"),
        (("quantize", "bundled", "--pin", "x=8", "-o", "x.slq"), "pattern 'x' matches no tensor"),
        (("export", "no.slq", "-o", "x.onnx"), "There is no quantized model no.slq"),
        (("export", "no.slq", "-o", "x.txt"), "The output must end with .onnx"),
        (("bench", "gemm", "--shape", "1x2"), "A shape is MxNxK"),
        (("bench", "gemm", "--dim", "5", "--shape", "1x2x3"), "dim must be one of 4, 8, 16, 32"),
        (("bench", "gemm", "--dim", "8", "--bus-bytes", "3", "--shape", "1x2x3"), "bus_bytes"),
        (("rtl", "--config", "nope", "-o", "out"), "No configuration 'nope'"),
    ],
)
def test_wrong_arguments_get_one_sentence(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in one_sentence(run(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_text_that_does_not_fit(run, checkpoint):
    long = run("generate", "--model", checkpoint, "--prompt", "a" * 60, "--tokens", "5")
    assert "beyond the context of 32" in one_sentence(long)
    for backend in ("golden", "machine"):
        full = run("generate", "--model", checkpoint, "--prompt", "a" * 20, "--tokens", "99",
                   "--backend", backend, "--config", "tiny", "--temperature", "50")
        assert full.exit_code == 0, full.output
        assert "the context of 32 tokens is full: the text ends after 11 new ones" in full.stderr
    none = run("generate", "--model", checkpoint, "--tokens", "0")
    assert "at least 1" in one_sentence(none)


def test_damaged_checkpoints(run, checkpoint):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    broken = dict(tensors)
    broken["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    save_file(broken, path)
    assert "model.norm.weight" in one_sentence(run("generate", "--model", checkpoint))
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-100])
    one_sentence(run("generate", "--model", checkpoint))
    path.unlink()
    one_sentence(run("generate", "--model", checkpoint))


def test_a_missing_compiler_is_named(run, monkeypatch):
    from systolith.sim import verilator

    verilator.find.cache_clear()  # another test of this process may have found it
    monkeypatch.setenv("PATH", "/nonexistent")
    sentence = one_sentence(run("bench", "gemm", "--dim", "4", "--shape", "4x4x4"))
    assert "install" in sentence
