"""Where yosys put the memories of a design, read from its log."""

import re


def memory_mapping(log: str) -> dict[str, str]:
    """The destination of each memory, from the log of yosys's memory_libmap.

    Constants that a case statement chooses from are called memories there, and become gates: they
    are left out.
    """
    mapping = {}
    for match in re.finditer(r"mapping memory (\S+) via (\S+)", log):
        name = match[2].upper()
        if re.search(r"DPR16|LUTRAM|RAM16|DPR8|DISTRAM", name):
            mapping[match[1]] = "lut"
        elif re.search(r"SPRAM|LRAM|512K", name):
            mapping[match[1]] = "spram"
        else:
            mapping[match[1]] = "block"
    for match in re.finditer(r"using FF mapping for memory (\S+)", log):
        if "$proc_rom." not in match[1]:
            mapping[match[1]] = "ff"
    return mapping
