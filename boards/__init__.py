"""FPGA families: synthesis, place and route, reports."""

if __name__ != "systolith.boards":
    raise ImportError(
        "this folder is the package 'systolith.boards': install the project (pip install -e .) "
        "and import it by that name"
    )
