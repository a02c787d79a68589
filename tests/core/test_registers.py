"""The register map is consistent: it is what hardware, header and host software share."""

from systolith import registers
from systolith.registers import REGISTERS, Access


def test_offsets_do_not_overlap_and_fit() -> None:
    used: dict[int, str] = {}
    for register in REGISTERS:
        for offset in range(register.offset, register.offset + (8 if register.wide else 4), 4):
            assert offset % 4 == 0 and 0 <= offset < 4096, register.name
            assert offset not in used, f"{register.name} lies on {used[offset]}"
            used[offset] = register.name


def test_names_are_unique_and_described() -> None:
    assert len(registers.BY_NAME) == len(REGISTERS)
    assert all(r.name == r.name.upper() and r.doc for r in REGISTERS)


def test_resets_fit_and_belong_to_registers_that_hold_something() -> None:
    for register in REGISTERS:
        assert 0 <= register.reset < 1 << 32, register.name
        assert register.access != Access.COMMAND or register.reset == 0, register.name


def test_counters_are_contiguous_wide_and_read_only() -> None:
    """The hardware takes a counter's index from the address."""
    first = registers.COUNTERS[0].offset
    assert first % 8 == 0
    for index, counter in enumerate(registers.COUNTERS):
        assert counter.offset == first + 8 * index, counter.name
        assert counter.wide and counter.access == Access.READ and counter.reset == 0, counter.name
        assert counter in REGISTERS


def test_identification_spells_the_name() -> None:
    assert registers.IDENTIFICATION.to_bytes(4, "big") == b"SYST"
    assert registers.BY_NAME["ID"].reset == registers.IDENTIFICATION
    assert registers.BY_NAME["VERSION"].reset == registers.VERSION


def test_bits_are_distinct() -> None:
    for prefix in ("CONTROL_", "STATUS_"):
        bits = [getattr(registers, name) for name in dir(registers) if name.startswith(prefix)]
        assert len(bits) == 3
        assert all(bit & (bit - 1) == 0 for bit in bits) and len(set(bits)) == 3


def test_errors_fit_the_hardware() -> None:
    assert registers.Error.NONE == 0
    assert all(0 <= error < 16 for error in registers.Error)
