"""Files for integrators: Verilog of the machine, a manifest that describes it, and a C header."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amaranth.back import rtlil, verilog
from amaranth.hdl import Shape
from amaranth.lib import wiring

from systolith import isa, registers
from systolith.config import Config
from systolith.publish import publish

TOP = "systolith"
FORMAT = "systolith-manifest"
VERSION = 1


def to_verilog(component: Any, name: str, ports: dict[str, Any] | None = None) -> str:
    """Verilog text of a component; the top module is ``name``, its ports the signature's, or those
    of ``ports`` by name, each going the way it is used.

    The text is the same in every run (no source locations), so that its hash can be a cache key.
    Memories that start as zeros get no initial contents: they are zero in FPGAs and under Verilator
    anyway, and writing the zeros down takes minutes for the megabytes of a large machine.
    """
    with _without_zeros():
        directed = None if ports is None else {port: (ports[port], None) for port in ports}
        return verilog.convert(
            component, name=name, ports=directed, emit_src=False, strip_internal_attrs=True
        )


@contextmanager
def _without_zeros() -> Iterator[None]:
    """Lets Amaranth's back end skip the contents of all-zero memories.

    Amaranth has no option for it, so one method is wrapped; should a future Amaranth lack it, the
    conversion is slow again and otherwise the same.
    """
    emitter = getattr(rtlil, "ModuleEmitter", None)
    original = getattr(emitter, "emit_memory", None)
    if original is None:
        yield
        return

    def emit_memory(self: Any, index: int, cell: Any) -> None:
        if any(cell.init):
            original(self, index, cell)

    emitter.emit_memory = emit_memory
    try:
        yield
    finally:
        emitter.emit_memory = original


def machine_verilog(config: Config) -> str:
    """Verilog of the whole machine, module ``systolith``."""
    from systolith.hdl.top import Systolith

    return to_verilog(Systolith(config), TOP)


def export(config: Config, directory: Path) -> list[Path]:
    """Writes ``systolith.v``, ``manifest.json`` and ``systolith.h``; returns their paths.

    Equal configurations give equal files; see ``publish``. The manifest, which holds the hash of
    the Verilog, comes last. Raises ``UserError`` where it cannot write.
    """
    text = machine_verilog(config)
    files = {
        "systolith.v": text,
        "systolith.h": header(config),
        "manifest.json": json.dumps(manifest(config, text), indent=2) + "\n",
    }
    return publish(directory, files)


def ports(config: Config) -> list[dict[str, Any]]:
    """Name, direction and width of every port of the machine, clock and reset first."""
    from systolith.hdl.top import members

    found = [{"name": name, "direction": "input", "width": 1} for name in ("clk", "rst")]
    for name, member in members(config).items():
        direction = "output" if member.flow == wiring.Out else "input"
        width = Shape.cast(member.shape).width
        found.append({"name": name, "direction": direction, "width": width})
    return found


def manifest(config: Config, text: str) -> dict[str, Any]:
    """Everything that software and integrators need to know of the machine in ``text``."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "top": TOP,
        "verilog": {"file": "systolith.v", "sha256": hashlib.sha256(text.encode()).hexdigest()},
        "configuration": asdict(config),
        "configuration_hash": f"{config.hash:#010x}",
        "ports": ports(config),
        "registers": [
            {
                "name": register.name,
                "offset": register.offset,
                "bytes": 8 if register.wide else 4,
                "access": register.access.name.lower(),
                "reset": register.reset,
                "description": register.doc,
            }
            for register in registers.REGISTERS
        ],
    }


def header(config: Config) -> str:
    """A C header: configuration, registers and their bits, errors, instructions and fields.

    A field is given as word, lowest bit and width: ``SYSTOLITH_MATMUL_ROWS_WORD``, ``_LOW``,
    ``_WIDTH``.
    """
    lines = [
        "/* Generated from the configuration, the register map and the instruction set. */",
        "#ifndef SYSTOLITH_H",
        "#define SYSTOLITH_H",
    ]

    def section(title: str) -> None:
        lines.extend(["", f"/* {title} */"])

    def define(name: str, value: int | str) -> None:
        lines.append(f"#define SYSTOLITH_{name} {value}")

    section("Configuration")
    for name, value in asdict(config).items():
        define(name.upper(), value)
    section("Registers: byte offsets; the upper half of a 64-bit one follows at + 4")
    for register in registers.REGISTERS:
        define(f"REG_{register.name}", f"{register.offset:#04x}")
    section("What the read-only registers hold")
    define("ID", f"{registers.IDENTIFICATION:#010x}u")
    define("VERSION", f"{registers.VERSION:#010x}u")
    define("CONFIG_HASH", f"{config.hash:#010x}u")
    section("Bits of CONTROL and STATUS")
    for name in (
        "CONTROL_START", "CONTROL_RESET", "CONTROL_IRQ_CLEAR",
        "STATUS_BUSY", "STATUS_DONE", "STATUS_ERROR",
    ):  # fmt: skip
        define(name, f"{getattr(registers, name):#x}")
    section("Contents of ERROR")
    for error in registers.Error:
        define(f"ERROR_{error.name}", int(error))
    section("Semaphores: bits of the masks in word 1 (wait from bit 0, signal from bit 12)")
    for producer in isa.QUEUED:
        for consumer in isa.QUEUED:
            if producer != consumer:
                index = isa.semaphore(producer, consumer)
                define(f"SEM_{producer.name}_{consumer.name}", index)
    kinds: dict[str, Any] = {}
    for opcode in isa.OPCODES:
        section(f"{opcode.name}: {opcode.doc}")
        define(f"OP_{opcode.name.upper()}", f"{opcode.code:#04x}")
        for field in opcode.fields:
            name = f"{opcode.name}_{field.name}".upper()
            define(f"{name}_WORD", field.word)
            define(f"{name}_LOW", field.low)
            define(f"{name}_WIDTH", field.width)
            if field.kind is not None:
                kinds[field.kind.__name__] = field.kind
    section("Values of fields")
    for name, kind in sorted(kinds.items()):
        for value in kind:
            define(f"{_upper(name)}_{value.name}", int(value))
    return "\n".join([*lines, "", "#endif", ""])


def _upper(name: str) -> str:
    """``TableMode`` as ``TABLE_MODE``."""
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(name)).upper()
