"""Golden machine, Verilator and cocotb harness, testbenches."""

if __name__ != "systolith.sim":
    raise ImportError(
        "this folder is the package 'systolith.sim': install the project (pip install -e .) "
        "and import it by that name"
    )
