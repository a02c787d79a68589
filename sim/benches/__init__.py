"""cocotb testbenches, run inside the simulator."""

if __name__ != "systolith.sim.benches":
    raise ImportError(
        "this folder is the package 'systolith.sim.benches': install the project "
        "(pip install -e .) and import it by that name"
    )
