"""Enough of Vivado's Tcl to check scripts without it: commands, files, objects of a design.

`Vivado` runs a script in Python's Tcl interpreter. Commands of Vivado are procedures of Python: an
unknown one is an error, as an unbalanced bracket is; files that are named must exist, and what is
connected, configured or placed must have been created before. Interfaces and pins of the vendor's
IPs are listed here, as far as the kit uses them, from their product guides (PG247, PG164, PG174,
PG078, PG058, PG065, PG082).
"""

import tkinter
from collections.abc import Callable
from pathlib import Path

PINS = {
    "xilinx.com:ip:processing_system7:5.5": {
        "M_AXI_GP0", "S_AXI_HP0", "M_AXI_GP0_ACLK", "S_AXI_HP0_ACLK", "FCLK_CLK0",
        "FCLK_RESET0_N", "IRQ_F2P",
    },
    "xilinx.com:ip:smartconnect:1.0": {
        "S00_AXI", "S01_AXI", "M00_AXI", "M01_AXI", "aclk", "aresetn",
    },
    "xilinx.com:ip:proc_sys_reset:5.0": {
        "slowest_sync_clk", "ext_reset_in", "dcm_locked", "peripheral_aresetn",
    },
    "xilinx.com:ip:clk_wiz:6.0": {"clk_in1", "clk_out1", "locked", "resetn"},
    "xilinx.com:ip:jtag_axi:1.2": {"M_AXI", "aclk", "aresetn"},
    "xilinx.com:ip:axi_bram_ctrl:4.1": {"S_AXI", "BRAM_PORTA", "s_axi_aclk", "s_axi_aresetn"},
    "xilinx.com:ip:blk_mem_gen:8.4": {"BRAM_PORTA"},
}  # fmt: skip
CONFIGURED = {
    "xilinx.com:ip:processing_system7:5.5": {
        "PCW_FPGA0_PERIPHERAL_FREQMHZ", "PCW_USE_M_AXI_GP0", "PCW_USE_S_AXI_HP0",
        "PCW_S_AXI_HP0_DATA_WIDTH", "PCW_USE_FABRIC_INTERRUPT", "PCW_IRQ_F2P_INTR",
    },
    "xilinx.com:ip:smartconnect:1.0": {"NUM_SI", "NUM_MI"},
    "xilinx.com:ip:clk_wiz:6.0": {
        "PRIM_SOURCE", "PRIM_IN_FREQ", "CLKOUT1_REQUESTED_OUT_FREQ", "RESET_TYPE", "RESET_PORT",
    },
    "xilinx.com:ip:axi_bram_ctrl:4.1": {"PROTOCOL", "DATA_WIDTH", "SINGLE_PORT_BRAM"},
}  # fmt: skip
# Must be driven, or a design does not work; of the others Vivado has defaults.
NEEDED = {"aclk", "aresetn", "s_axi_aclk", "s_axi_aresetn", "slowest_sync_clk", "ext_reset_in",
          "clk_in1"}  # fmt: skip
SEGMENTS = {"ps7/S_AXI_HP0/HP0_DDR_LOWOCM", "memory/S_AXI/Mem0", "systolith/S_AXIL/registers"}
SPACES = {"ps7/Data", "jtag/Data", "systolith/M_AXI"}
MACHINE = {"aclk", "aresetn", "irq", "M_AXI", "S_AXIL"}
SILENT = (
    "update_compile_order", "update_ip_catalog", "validate_bd_design", "save_bd_design",
    "generate_target", "launch_runs", "wait_on_run", "open_run", "report_utilization",
    "report_timing_summary", "close_project", "ipx::create_xgui_files", "ipx::update_checksums",
    "ipx::check_integrity", "exclude_bd_addr_seg", "set_false_path",
)  # fmt: skip
OBJECTS = (
    "current_project", "current_fileset", "get_runs", "get_timing_paths", "current_design",
    "ipx::current_core", "ipx::get_bus_interfaces", "ipx::get_memory_maps",
)  # fmt: skip


class Vivado:
    """After `source(script)`: what the script made. ``board_files``: whether boards are known."""

    def __init__(self, vlnv: str, *, board_files: bool = False, argument: str = "") -> None:
        self.tcl = tkinter.Tcl()
        self.vlnv, self.board_files = vlnv, board_files
        self.cells: dict[str, str] = {}
        self.ports: dict[str, str] = {}
        self.nets: list[tuple[str, str]] = []
        self.interfaces: list[tuple[str, str]] = []
        self.addresses: list[tuple[str, str, int, str]] = []
        self.properties: dict[tuple[str, str], str] = {}
        self.registers: list[str] = []
        self.bus_clocks: dict[str, str] = {}
        self.files: list[Path] = []
        self.clocks: list[tuple[float, str]] = []
        self.packaged = self.saved = False
        self.slack = 1.0
        for name in SILENT:
            self._command(name, lambda *arguments: "")
        for name in OBJECTS:
            self._command(name, self._object(name))
        for name in dir(self):
            if name.startswith("do_"):
                self._command(name[3:].replace("ipx_", "ipx::"), getattr(self, name))
        self.tcl.eval(f"set argv {{{argument}}}")

    def _command(self, name: str, function: Callable[..., object]) -> None:
        """A command whose failed assertions are errors of Tcl with their text."""

        def called(*arguments: str) -> tuple[str, object]:
            try:
                return "ok", function(*arguments)
            except Exception as error:
                return "error", str(error) or type(error).__name__

        inner = f"python_{name.replace('::', '_')}"
        self.tcl.createcommand(inner, called)
        self.tcl.eval(
            "namespace eval ipx {}\n"
            f"proc {name} args {{\n  lassign [{inner} {{*}}$args] how result\n"
            "  if {$how eq {error}} { error $result }\n  return $result\n}"
        )

    def _object(self, name: str) -> Callable[..., str]:
        return lambda *arguments: " ".join([name.removeprefix("ipx::"), *arguments[:1]])

    def source(self, path: Path) -> None:
        self.tcl.eval(f"source {{{path}}}")

    def _split(self, text: str) -> tuple[str, ...]:
        return tuple(map(str, self.tcl.splitlist(text)))

    @staticmethod
    def _option(arguments: tuple[str, ...], name: str) -> str:
        assert name in arguments, f"{name} is missing in {arguments}"
        return str(arguments[arguments.index(name) + 1])

    # Projects and files ----------------------------------------------------------------------

    def do_create_project(self, *arguments: str) -> str:
        assert self._option(arguments, "-part").startswith("xc7")
        self.properties["current_project", "board_part"] = ""
        return ""

    def do_add_files(self, *arguments: str) -> str:
        for name in self._split(arguments[-1]):
            assert Path(name).is_file(), f"there is no file {name}"
            self.files.append(Path(name))
        return ""

    def do_get_files(self, name: str) -> str:
        return name

    def do_make_wrapper(self, *arguments: str) -> str:
        assert arguments[-1] == "-top"
        path = self.files[-1].parent / "build" / "system_wrapper.v"
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        return f"{{{path}}}"

    def do_get_board_parts(self, *arguments: str) -> str:
        return arguments[-1].replace("*", "1.0") if self.board_files else ""

    # Objects' properties ---------------------------------------------------------------------

    def do_set_property(self, *arguments: str) -> str:
        if arguments[0] == "-dict":
            values, target = self._split(arguments[1]), arguments[2]
            assert len(values) % 2 == 0, values
            pairs = list(zip(values[::2], values[1::2], strict=True))
        else:
            name, value, target = arguments
            pairs = [(name, value)]
        for name, value in pairs:
            if target in self.cells:
                known = CONFIGURED.get(self.cells[target], set())
                assert name.removeprefix("CONFIG.") in known, f"{target} has no {name}"
            self.properties[str(target), str(name)] = str(value)
        return ""

    def do_get_property(self, name: str, target: str) -> str:
        if name == "PROGRESS":
            return "100%"
        if name == "SLACK":
            return str(self.slack)
        return self.properties[target, name]

    # The IP ----------------------------------------------------------------------------------

    def do_ipx_package_project(self, *arguments: str) -> str:
        sources = {path.name for path in self.files}
        assert sources == {"systolith.v", "systolith_ip.v"}, sources
        parts = [self._option(arguments, f"-{name}") for name in ("vendor", "library")]
        assert parts == self.vlnv.split(":")[:2]
        self.packaged = True
        return ""

    def do_ipx_associate_bus_interfaces(self, *arguments: str) -> str:
        self.bus_clocks[self._option(arguments, "-busif")] = self._option(arguments, "-clock")
        return ""

    def do_ipx_remove_all_memory_map(self, core: str) -> str:
        return ""

    def do_ipx_add_memory_map(self, name: str, core: str) -> str:
        return name

    def do_ipx_add_address_block(self, name: str, where: str) -> str:
        return name

    def do_ipx_add_register(self, name: str, block: str) -> str:
        self.registers.append(name)
        return f"register {name}"

    def do_ipx_save_core(self, core: str) -> str:
        named = [self.properties["current_core", key] for key in ("name", "version")]
        assert self.packaged and named == self.vlnv.split(":")[2:]
        self.saved = True
        return ""

    # The block design ------------------------------------------------------------------------

    def do_create_bd_design(self, name: str) -> str:
        return name

    def do_create_bd_cell(self, *arguments: str) -> str:
        vlnv, name = self._option(arguments, "-vlnv"), arguments[-1]
        assert vlnv in PINS or (vlnv == self.vlnv and self.saved), f"there is no IP {vlnv}"
        assert name not in self.cells
        self.cells[name] = vlnv
        return name

    def do_create_bd_port(self, *arguments: str) -> str:
        self.ports[arguments[-1]] = self._option(arguments, "-dir")
        return arguments[-1]

    def do_get_bd_cells(self, name: str) -> str:
        assert name in self.cells, f"there is no cell {name}"
        return name

    def do_get_bd_ports(self, name: str) -> str:
        assert name in self.ports, f"there is no port {name}"
        return name

    def do_get_bd_pins(self, path: str) -> str:
        cell, _, pin = path.partition("/")
        known = PINS.get(self.cells[cell], MACHINE)
        assert pin in known, f"{cell} has no {pin}"
        return path

    do_get_bd_intf_pins = do_get_bd_pins

    def do_connect_bd_net(self, first: str, second: str) -> str:
        assert second not in [target for _, target in self.nets], f"{second} has two drivers"
        self.nets.append((first, second))
        return ""

    def do_connect_bd_intf_net(self, first: str, second: str) -> str:
        used = [end for pair in self.interfaces for end in pair]
        assert first not in used and second not in used, (first, second)
        self.interfaces.append((first, second))
        return ""

    def do_apply_bd_automation(self, *arguments: str) -> str:
        assert arguments[-1] in self.cells
        config = self._split(self._option(arguments, "-config"))
        values = dict(zip(config[::2], config[1::2], strict=True))
        assert values["make_external"] == "FIXED_IO, DDR"
        self.properties["automation", "preset"] = values["apply_board_preset"]
        return ""

    def do_get_bd_addr_spaces(self, name: str) -> str:
        assert name in SPACES and name.split("/")[0] in self.cells
        return name

    def do_get_bd_addr_segs(self, name: str) -> str:
        assert name in SEGMENTS and name.split("/")[0] in self.cells
        return name

    def do_assign_bd_address(self, *arguments: str) -> str:
        size = self._option(arguments, "-range")
        offset = int(self._option(arguments, "-offset"), 0)
        unit = {"K": 10, "M": 20}[size[-1]]
        assert offset % (int(size[:-1]) << unit) == 0, f"{size} at {offset:#x} is misaligned"
        space = self._option(arguments, "-target_address_space")
        self.addresses.append((space, arguments[-1], offset, size))
        return ""

    def undriven(self) -> list[str]:
        """Clocks, resets and bus ports that nothing is connected to."""
        nets = {end for pair in self.nets for end in pair}
        buses = {end for pair in self.interfaces for end in pair}
        missing = []
        for cell, vlnv in self.cells.items():
            pins = PINS.get(vlnv, MACHINE)
            for pin in sorted(pins):
                path = f"{cell}/{pin}"
                is_bus = "AXI" in pin and not pin.lower().endswith(("aclk", "aresetn"))
                if is_bus and vlnv == "xilinx.com:ip:smartconnect:1.0":
                    count = int(self.properties[cell, f"CONFIG.NUM_{pin[0]}I"])
                    is_bus = int(pin[1:3]) < count
                    assert is_bus or path not in buses, f"{path} is beyond the configured number"
                needs_net = pin.lower() in NEEDED or pin.endswith("ACLK") or pin == "irq"
                if (is_bus and path not in buses) or (needs_net and path not in nets):
                    missing.append(path)
        return missing

    # Constraints -----------------------------------------------------------------------------

    def do_create_clock(self, *arguments: str) -> str:
        self.clocks.append((float(self._option(arguments, "-period")), arguments[-1]))
        return ""

    def do_get_ports(self, name: str) -> str:
        assert name in self.ports, f"the design has no port {name}"
        return name
