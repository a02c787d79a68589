"""The code of the documentation runs, so that it cannot rot."""

import contextlib
import io
import re
import shlex
import warnings
from pathlib import Path

import click
import pytest
import torch

from systolith.cli import main

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "quantizer.md"


def test_the_code_of_the_page_on_the_quantizer(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) > 5
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as printed:
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch's ONNX exporter
        for block in blocks:
            # Empty lines before the code, so that a traceback has the page's line numbers.
            before = "\n" * text[:block.start(1)].count("\n")
            exec(compile(before + block[1], str(PAGE), "exec"), names)
    assert "mean cosine" in printed.getvalue()


def test_commands_of_the_page_have_the_options_that_they_use() -> None:
    commands = re.findall(r"^    systolith (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert commands
    for command in commands:
        name, *arguments = shlex.split(command)
        context = click.Context(main)
        found = main.get_command(context, name)
        assert found is not None, name
        found.make_context(name, arguments, parent=context)
