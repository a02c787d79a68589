"""From an integer graph to a program image."""

if __name__ != "systolith.compiler":
    raise ImportError(
        "this folder is the package 'systolith.compiler': install the project (pip install -e .) "
        "and import it by that name"
    )
