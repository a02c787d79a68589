"""The float reference against a second implementation in float64, written from the definition."""

import math

import numpy as np
import pytest
import torch

from systolith.errors import CheckpointError, UserError
from systolith.quant.llama import KVCache, Llama, LlamaConfig

SEED = 7
SMALL = dict(dim=24, hidden_dim=20, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=33,
             max_seq_len=16)


def make(seed: int = SEED, **changes) -> Llama:
    print(f"seed {seed}")
    torch.manual_seed(seed)
    model = Llama(LlamaConfig(**SMALL | changes)).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.uniform_(0.5, 1.5)
        else:
            weight.normal_(std=0.3)
    return model


def tokens_of(model: Llama, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=generator)


def rotate(vector: np.ndarray, position: int, config: LlamaConfig) -> np.ndarray:
    """One head at one position, pair by pair, as complex numbers."""
    out = np.empty_like(vector)
    half = len(vector) // 2
    for pair in range(half):
        i, j = (2 * pair, 2 * pair + 1) if config.rope_pairs == "adjacent" else (pair, half + pair)
        angle = position * config.rope_base ** (-2 * pair / len(vector))
        z = complex(vector[i], vector[j]) * complex(math.cos(angle), math.sin(angle))
        out[i], out[j] = z.real, z.imag
    return out


def reference(model: Llama, tokens: list[int]) -> np.ndarray:
    """Logits [T, vocab] in float64, one token and one head at a time."""
    c = model.config
    w = {k: v.double().numpy() for k, v in model.state_dict().items()}

    def norm(x, name):
        return x / math.sqrt(np.mean(x * x) + c.norm_eps) * w[name + ".weight"]

    x = [w["model.embed_tokens.weight"][t] for t in tokens]
    for n in range(c.n_layers):
        layer = f"model.layers.{n}."
        keys, values = [], []
        for t in range(len(tokens)):
            y = norm(x[t], layer + "input_layernorm")
            q = (w[layer + "self_attn.q_proj.weight"] @ y).reshape(c.n_heads, c.head_dim)
            k = (w[layer + "self_attn.k_proj.weight"] @ y).reshape(c.n_kv_heads, c.head_dim)
            v = (w[layer + "self_attn.v_proj.weight"] @ y).reshape(c.n_kv_heads, c.head_dim)
            keys.append([rotate(row, t, c) for row in k])
            values.append(v)
            mixed = []
            for head in range(c.n_heads):
                group = head * c.n_kv_heads // c.n_heads
                query = rotate(q[head], t, c)
                score = [query @ keys[s][group] / math.sqrt(c.head_dim) for s in range(t + 1)]
                p = np.exp(np.array(score) - max(score))
                p /= p.sum()
                mixed.append(sum(p[s] * values[s][group] for s in range(t + 1)))
            x[t] = x[t] + w[layer + "self_attn.o_proj.weight"] @ np.concatenate(mixed)
            y = norm(x[t], layer + "post_attention_layernorm")
            gate = w[layer + "mlp.gate_proj.weight"] @ y
            up = w[layer + "mlp.up_proj.weight"] @ y
            x[t] = x[t] + w[layer + "mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    classifier = w["model.embed_tokens.weight" if c.tied_embedding else "lm_head.weight"]
    return np.array([classifier @ norm(v, "model.norm") for v in x])


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_match_the_definition(pairs, tied):
    model = make(rope_pairs=pairs, tied_embedding=tied)
    tokens = tokens_of(model, 2, 9)
    got = model(tokens).numpy()
    assert got.shape == (2, 9, 33)
    for row in range(2):
        np.testing.assert_allclose(got[row], reference(model, tokens[row].tolist()),
                                   rtol=1e-4, atol=1e-4)


def test_the_two_conventions_differ():
    a, b = make(rope_pairs="adjacent"), make(rope_pairs="halves")
    tokens = tokens_of(a, 1, 9)
    assert (a(tokens) - b(tokens)).abs().max() > 0.01


def test_a_later_token_changes_nothing_before_it():
    model = make()
    tokens = tokens_of(model, 1, 10)
    other = tokens.clone()
    other[0, 6] = (other[0, 6] + 1) % 33
    before, after = model(tokens), model(other)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-6)
    assert (before[:, 6] - after[:, 6]).abs().max() > 1e-3


@pytest.mark.parametrize("cuts", [[16], [1] * 16, [5, 1, 7, 3]])
def test_a_cache_continues_the_sequence(cuts):
    model = make()
    tokens = tokens_of(model, 2, 16)
    cache = KVCache()
    parts = [model(part, cache) for part in tokens.split(cuts, dim=1)]
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-5, atol=1e-5)


def test_a_sequence_beyond_the_positions_is_refused():
    model = make()
    with pytest.raises(ValueError, match=r"Sequence length must be at most 16, not 17"):
        model(tokens_of(model, 1, 17))
    cache = KVCache()
    model(tokens_of(model, 1, 16), cache)
    with pytest.raises(ValueError, match=r"Sequence length must be at most 16, not 17"):
        model(tokens_of(model, 1, 1), cache)


@pytest.mark.parametrize(("changes", "message"), [
    (dict(dim=0), "dim must be a positive integer, not 0"),
    (dict(n_layers=2.0), "n_layers must be a positive integer, not 2.0"),
    (dict(vocab_size=True), "vocab_size must be a positive integer, not True"),
    (dict(max_seq_len=1 << 21), "max_seq_len must be at most 1048576, not 2097152"),
    (dict(norm_eps=0.0), "norm_eps must be a positive number, not 0.0"),
    (dict(norm_eps="1e-5"), "norm_eps must be a positive number, not '1e-5'"),
    (dict(rope_base=math.inf), "rope_base must be a positive number, not inf"),
    (dict(rope_pairs="thirds"), "rope_pairs must be one of adjacent, halves, not 'thirds'"),
    (dict(tied_embedding=1), "tied_embedding must be true or false, not 1"),
    (dict(dim=30), "dim must be an even multiple of n_heads, not 30 for 6 heads"),
    (dict(n_kv_heads=4), "n_kv_heads must divide n_heads, not 4 for 6 heads"),
])
def test_a_wrong_configuration_is_refused(changes, message):
    with pytest.raises(CheckpointError) as e:
        LlamaConfig(**SMALL | changes)
    assert str(e.value) == message
    assert isinstance(e.value, UserError)
