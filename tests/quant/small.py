"""A Llama with random weights that is small, and lively enough for its activations to matter."""

import torch

from systolith.quant.llama import Llama, LlamaConfig

VOCABULARY, CONTEXT = 40, 24


def small_llama(seed: int, **changes) -> Llama:
    torch.manual_seed(seed)
    config = {
        "dim": 16, "hidden_dim": 20, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
        "vocab_size": VOCABULARY, "max_seq_len": CONTEXT,
    }
    model = Llama(LlamaConfig(**(config | changes))).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.uniform_(0.5, 1.5)
        else:
            weight.normal_(0, 0.3)
    return model
