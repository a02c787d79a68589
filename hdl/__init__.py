"""Amaranth components of the accelerator, one block of the diagram per file."""

if __name__ != "systolith.hdl":
    raise ImportError(
        "this folder is the package 'systolith.hdl': install the project (pip install -e .) "
        "and import it by that name"
    )
