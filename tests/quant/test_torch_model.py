"""The torch module is the golden forward, bit for bit, batches and padding included."""

import numpy as np
import pytest
import torch

from systolith.errors import UserError
from systolith.forward import IntegerModel
from systolith.graph import Graph
from systolith.quant.torch_model import IntegerModule
from tests.graphs import CHANNELS, CONTEXT, VOCABULARY, encoder, every_node


def inputs_of(graph: Graph, seed: int, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Index inputs, and integers for the given tensor of the encoder."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randint(0, rows, (batch, length), generator=generator)
              for name, rows in graph.indices.items()}
    if graph.outputs[0].pool == "mean":
        inputs["given"] = torch.randint(-1 << 15, 1 << 15, (batch, length, CHANNELS),
                                        generator=generator)
    return inputs


@pytest.mark.parametrize("make", [every_node, encoder])
def test_every_tensor_of_padded_batches(make, seed):
    graph = make(seed)
    module, lengths = IntegerModule(graph), torch.tensor([CONTEXT, 5, 1, 8])
    inputs = inputs_of(graph, seed, 4, CONTEXT)
    real = {n: x * 0.5 if n == "given" else x for n, x in inputs.items()}  # its scale is 0.5
    values = module.trace(real, lengths)
    mask = (torch.arange(CONTEXT) < lengths[:, None]).long()
    results = module(**real, attention_mask=mask)
    results = results if isinstance(results, tuple) else (results,)
    for row, count in enumerate(lengths.tolist()):
        model = IntegerModel(graph)
        alone = {name: x[row, :count].numpy() for name, x in inputs.items()}
        for name, expected in model.trace(alone).items():
            np.testing.assert_array_equal(values[name][row, :count].numpy(), expected, name)
        for found, expected in zip(results, model.run(alone), strict=True):
            part = found[row] if found.dim() == 2 else found[row, :count]
            np.testing.assert_allclose(part.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_tokens_may_stand_alone(seed):
    graph = every_node(seed)
    tokens = torch.randint(0, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(seed))
    logits = IntegerModule(graph)(tokens)
    for row in range(2):
        np.testing.assert_array_equal(logits[row].numpy(), IntegerModel(graph).logits(tokens[row]))


def test_wrong_inputs_are_refused(seed):
    module = IntegerModule(every_node(seed))
    with pytest.raises(UserError, match="'tokens' must be 0 to 10, not 0 to 11"):
        module(torch.tensor([[0, 11]]))
    with pytest.raises(UserError, match=f"context is {CONTEXT} tokens, and {CONTEXT + 1}"):
        module(torch.zeros(1, CONTEXT + 1, dtype=torch.long))
    with pytest.raises(UserError, match="The input 'types' is missing"):
        IntegerModule(encoder(seed))(torch.zeros(1, 2, dtype=torch.long))
