"""From a torch model to an integer graph: loaders, calibration, quantization, export."""

if __name__ != "systolith.quant":
    raise ImportError(
        "this folder is the package 'systolith.quant': install the project (pip install -e .) "
        "and import it by that name"
    )
