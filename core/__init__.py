"""systolith: from a torch module to RTL whose every output bit is predicted."""

if __name__ != "systolith":
    raise ImportError(
        "this folder is the package 'systolith': install the project (pip install -e .) "
        "and import it by that name"
    )
