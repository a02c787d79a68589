"""Settings for every test of the quantizer."""

import torch

# The models here are tiny: a second thread costs more in waiting than it gives, above all on a
# machine that is busy with simulations.
torch.set_num_threads(1)
