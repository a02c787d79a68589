"""Verilog from Amaranth components."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amaranth.back import rtlil, verilog


def to_verilog(component: Any, name: str) -> str:
    """Verilog text of a component; the top module is ``name``, its ports the signature's.

    The text is the same in every run (no source locations), so that its hash can be a cache key.
    Memories that start as zeros get no initial contents: they are zero in FPGAs and under Verilator
    anyway, and writing the zeros down takes minutes for the megabytes of a large machine.
    """
    with _without_zeros():
        return verilog.convert(component, name=name, emit_src=False, strip_internal_attrs=True)


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
