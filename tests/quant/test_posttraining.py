"""From a float network to integers: the function is kept, the error is small and explained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from systolith.errors import UserError
from systolith.forward import IntegerModel
from systolith.graph import Add, Linear
from systolith.quant import network as net
from systolith.quant import transform
from systolith.quant.build import product_inputs
from systolith.quant.calibrate import CLIPS, CalibrationError, batches_of, calibrate
from systolith.quant.compare import compare, integer_logits, network_logits
from systolith.quant.llama_network import llama_network
from systolith.quant.posttraining import quantize_network
from systolith.quant.recipe import METHODS, ROUNDINGS, Recipe
from systolith.quant.weights import quantize_rows
from tests.quant.small import VOCABULARY, small_llama


def tokens(seed: int, count: int = 4, length: int = 20) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, VOCABULARY, (count, length)))


def logits(network: net.Network, ids: np.ndarray) -> torch.Tensor:
    return network.results(network.run({"tokens": torch.from_numpy(ids)[None]}))[0]


def quality(model, graph, sequences):
    return compare(network_logits(llama_network(model)), integer_logits(graph), sequences)


@pytest.mark.parametrize("pairs", ["halves", "adjacent"])
def test_language_models_stay_what_they_are(pairs):
    model = small_llama(1, rope_pairs=pairs)
    made = quantize_network(llama_network(model), tokens(2), bos=1, eos=2)
    assert (made.graph.bos, made.graph.eos) == (1, 2)
    assert quality(model, made.graph, tokens(3, count=8)).divergence < 0.005


def test_every_tensor_of_the_graph_is_near_that_of_the_network():
    model = small_llama(4)
    made = quantize_network(llama_network(model), tokens(5))
    ids = tokens(5)[0]
    floats = made.network.run({"tokens": torch.from_numpy(ids)[None]})
    integers = IntegerModel(made.graph).trace(ids)
    compared = set(integers) & set(floats)
    parts = {name for name in integers if name.endswith((".high", ".low"))}
    assert len(parts) == 10 and compared == set(integers) - parts - {"token"}
    for name in compared:
        real = floats[name][0].double().numpy()
        noise = integers[name] * np.array(made.graph.tensors[name].scale) - real
        assert (noise**2).sum() < 0.01 * (real**2).sum(), name


@pytest.mark.parametrize("changes", [{"range": method} for method in METHODS]
                         + [{"smoothing": 0.5}, {"keys": (("*", 8),), "values": (("*", 8),)},
                            {"centering": False}])
def test_recipes_keep_the_function(changes):
    model = small_llama(6)
    recipe = Recipe(bits=(("*.norm", 8), ("*.product", 8), ("*.probabilities", 8)), **changes)
    made = quantize_network(llama_network(model), tokens(7), recipe)
    assert made.graph.tensors["layers.0.ffn.norm"].bits == 8
    assert made.graph.tensors["layers.0.attention.q"].bits == 16
    assert quality(model, made.graph, tokens(8)).divergence < 0.05


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_weights_of_four_bits(rounding):
    model = small_llama(6, dim=64, hidden_dim=80)
    for weight in model.parameters():
        weight *= 0.5 if weight.dim() == 2 else 1  # predictions less sure than four bits can be
    recipe = Recipe(weights=(("*", 4), ("logits", 8), ("*.ffn.*", 8), ("*.down", 4)), group=32,
                    rounding=rounding)
    made = quantize_network(llama_network(model), tokens(7), recipe)
    formats = made.graph.weight_formats()
    assert formats["layers.0.attention.v"] == formats["layers.1.ffn.down"] == "int4/32"
    assert formats["logits"] == formats["layers.0.ffn.up"] == "int8"
    down = made.graph.producer("layers.1.ffn.down")
    assert made.graph.constants[down.weight].shape == (64, 40)
    assert made.graph.constants[down.group_scale].shape == (64, 3)
    rows = {row.name: row.weights for row in made.report().rows}
    assert rows["layers.1.ffn.down"] == "int4/32" and rows["logits"] == "int8"
    assert rows["norm"] == ""
    assert quality(model, made.graph, tokens(8)).divergence < 0.1


def test_hessians_are_the_products_of_the_inputs():
    network = llama_network(small_llama(6))
    seen = list(batches_of(network, tokens(7)))
    name = "layers.0.ffn.norm"
    ranges = calibrate(network, seen, set(), hessians={name})
    x = torch.cat([network.run(inputs)[name].flatten(0, 1) for inputs, _ in seen]).double().numpy()
    for removed in (0.0, 0.9):
        rest = x - removed * x.mean(axis=0)
        hessian, energy = ranges[name].hessian(removed), ranges[name].energy(removed)
        np.testing.assert_allclose(hessian, rest.T @ rest / len(x), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(energy, np.diag(hessian), rtol=1e-4, atol=1e-5)
    assert ranges["norm"].hessian() is None


def test_transformations_keep_the_function():
    network = llama_network(small_llama(9))
    ids = tokens(10)
    expected = logits(network, ids[0])
    seen = list(batches_of(network, ids))
    adjacent = transform.adjacent_pairs(network)
    assert all(rope.pairs == "adjacent" for rope in adjacent.of_kind(net.Rope))
    turned = transform.turn_pairs(adjacent, seen, network.context)
    smoothed = transform.smooth(turned, calibrate(turned, seen, set()), 0.5)
    for before, after in ((network, adjacent), (adjacent, turned), (turned, smoothed)):
        assert not torch.equal(logits(before, ids[0]), logits(after, ids[0]))
        torch.testing.assert_close(logits(after, ids[0]), expected, rtol=1e-4, atol=1e-4)


def test_smoothing_moves_an_outlier_into_the_weights():
    network = llama_network(small_llama(11))
    gain = network.op("norm").gain.clone()
    gain[3] *= 100
    network = network.with_ops({"norm": replace(network.op("norm"), gain=gain)})
    seen = list(batches_of(network, tokens(12)))

    def spread(network):
        largest = calibrate(network, seen, set())["norm"].largest
        return largest.max() / np.median(largest)

    smoothed = transform.smooth(network, calibrate(network, seen, set()), 0.5)
    assert spread(smoothed) < spread(network) / 5


def test_slices_and_scales_become_part_of_their_linear():
    generator = torch.Generator().manual_seed(13)
    weight, bias = (torch.randn(n, generator=generator) for n in ((12, 4), (12,)))
    network = net.Network(ops=(
        net.Given(name="x", channels=4), net.Linear(name="both", x="x", weight=weight, bias=bias),
        net.Slice(name="a", x="both", first=0, count=6), net.Scale(name="s", x="a", factor=0.25),
        net.Slice(name="b", x="both", first=6, count=6), net.Multiply(name="y", a="s", b="b")),
        outputs=(net.Output(x="y"),), context=8)
    x = torch.randn(1, 5, 4, generator=generator)
    changed = transform.fold_scales(transform.split_slices(network))
    assert [type(op) for op in changed.ops] == [net.Given, net.Linear, net.Linear, net.Multiply]
    torch.testing.assert_close(changed.run({"x": x})["y"], network.run({"x": x})["y"])


def test_eight_bits_of_a_tensor_that_others_read_too():
    network = llama_network(small_llama(14))
    # Without its first norm, the feed-forward network reads the residual stream itself.
    ops = tuple(replace(op, x="layers.0.attention.residual")
                if isinstance(op, net.Linear) and op.x == "layers.0.ffn.norm" else op
                for op in network.ops if op.name != "layers.0.ffn.norm")
    network = replace(network, ops=ops)
    name = "layers.0.attention.residual"
    made = quantize_network(network, tokens(15), Recipe(bits=((name, 8),)))
    assert made.graph.tensors[name].bits == 16
    (narrow,) = (n for n in made.graph.of_kind(Add) if n.out == name + ".8")
    assert made.graph.tensors[narrow.out].bits == 8
    readers = made.graph.consumers(narrow.out)
    assert len(readers) == 2 and all(isinstance(r, Linear) for r in readers)


def test_bias_correction_takes_the_mean_error_away():
    model = small_llama(16)
    seen = tokens(17, count=16)
    errors = []
    for correct in (False, True):
        made = quantize_network(llama_network(model), seen, Recipe(bias_correction=correct))
        total = 0
        for ids in seen:
            floats = made.network.run({"tokens": torch.from_numpy(ids)[None]})
            name = "layers.0.attention.v"
            scale = np.array(made.graph.tensors[name].scale)
            linear = made.graph.producer(name)
            x = floats["layers.0.attention.norm"][0].double().numpy()
            x_scale = made.graph.tensors["layers.0.attention.norm"].scale[0]
            constants = made.graph.constants
            acc = x / x_scale @ constants[linear.weight].T + constants[linear.bias]
            real = acc * constants[linear.mult] * 0.5 ** constants[linear.shift] * scale
            total = total + (real - floats[name][0].double().numpy()).sum(axis=0)
        errors.append(np.abs(total).max())
    assert errors[1] < errors[0] / 20


def test_rows_are_clipped_where_that_has_the_lesser_error():
    rng = np.random.default_rng(18)
    weight = rng.normal(size=(6, 64)) * 0.1
    energy = rng.random(64) + 0.1
    weight[:, 5], energy[5] = 3, 1e-4  # a large weight of an input that is hardly ever there
    errors = []
    for known in (None, energy):
        made = quantize_rows(weight, np.zeros(6), 1.0, 8, known)
        w, scale = made.values, made.scale
        assert np.abs(w.astype(int)).max() <= 127
        errors.append((weight - w * scale[:, None])**2 @ energy)
    assert (errors[1] < errors[0]).all()


def test_mse_range_is_the_best_of_those_tried():
    rng = np.random.default_rng(19)
    table = torch.from_numpy(rng.standard_t(4, size=(4000, 1))).float()
    network = net.Network(ops=(net.Embed(name="x", table=table),), outputs=(net.Output(x="x"),),
                          context=4000)
    seen = calibrate(network, batches_of(network, [np.arange(4000)]), {"x"})["x"]
    x = table.double().numpy()[:, 0]

    def error(limit):
        step = limit / 127
        return ((np.clip(np.rint(x / step), -127, 127) * step - x)**2).mean()

    largest = np.abs(x).max()
    best = min(error(largest * part) for part in CLIPS)
    assert error(seen.clip("mse")[0]) < 1.05 * best
    # Entropy looks at the shape of the bulk: it gives up the few values far outside.
    assert np.quantile(np.abs(x), 0.99) < seen.clip("entropy")[0] < largest / 2
    assert seen.clip("minmax")[0] == largest
    inside = (np.abs(x) <= seen.clip("percentile", 99)[0]).mean()
    assert 0.99 <= inside <= 0.995


@pytest.mark.parametrize("batches, message", [
    ([], "at least one batch"),
    ([np.zeros((0,), dtype=np.int64)], "not empty"),
    ([np.zeros((1, 2, 3), dtype=np.int64)], "axes"),
    ([np.array([0, VOCABULARY])], "must be 0 to"),
    ([{"other": np.array([1])}], "lacks the input 'tokens'"),
])
def test_bad_calibration_is_refused(batches, message):
    with pytest.raises(CalibrationError, match=message):
        quantize_network(llama_network(small_llama(20)), batches)


def test_tensors_that_are_not_finite_are_named():
    network = llama_network(small_llama(21))
    bad = replace(network.op("layers.1.ffn.up"),
                  weight=network.op("layers.1.ffn.up").weight.clone().fill_(float("nan")))
    with pytest.raises(CalibrationError, match=r"layers\.1\.ffn\.up"):
        quantize_network(network.with_ops({bad.name: bad}), tokens(22))


def test_padding_does_not_count():
    network = llama_network(small_llama(23))
    ids = tokens(24, count=2)
    short = [ids[0], ids[1][:7]]
    padded = np.stack([ids[0], np.concatenate([ids[1][:7], np.full(13, 39)])])
    mask = np.stack([np.ones(20), np.arange(20) < 7])
    alone = calibrate(network, batches_of(network, short), set())
    both = calibrate(network, batches_of(network, [{"tokens": padded, "attention_mask": mask}]),
                     set())
    for name, seen in alone.items():
        assert seen.tokens == both[name].tokens
        np.testing.assert_allclose(seen.largest, both[name].largest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes, message", [
    ({"bits": (("nothing", 8),)}, "matches no tensor"),
    ({"weights": (("norm", 4),)}, "'norm' matches no Linear whose bits can be chosen; these are"),
    ({"context": 1000}, "context must be at most"),
])
def test_recipes_that_do_not_fit_are_refused(changes, message):
    network = llama_network(small_llama(25))
    with pytest.raises(UserError, match=message):
        quantize_network(network, tokens(26), Recipe(**changes))


@pytest.mark.parametrize("changes, message", [
    ({"bits": (("x", 4),)}, "bits must be"), ({"range": "all"}, "range must be"),
    ({"weights": (("x", 16),)}, "weights must be pairs of a pattern and 8 or 4"),
    ({"group": 16}, "group must be one of 32, 64, 128, not 16"),
    ({"rounding": "up"}, "rounding must be one of nearest, gptq, not 'up'"),
    ({"smoothing": 2.0}, "smoothing must be"), ({"headroom": 0.5}, "headroom must be"),
])
def test_recipes_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Recipe(**changes)


def test_keys_and_values_are_no_choice():
    names = product_inputs(llama_network(small_llama(27)))
    assert "layers.0.attention.q" in names
    assert not {"layers.0.attention.k", "layers.0.attention.v"} & set(names)


def test_report_says_where_the_noise_comes_from():
    name = "layers.1.ffn.product"
    decibel = []
    for bits in (16, 8):
        made = quantize_network(llama_network(small_llama(28)), tokens(29),
                                Recipe(bits=((name, bits),)))
        found = made.report()
        rows = {row.name: row for row in found.rows}
        assert set(rows) == set(made.graph.tensors)
        assert rows[name].bits == bits and rows[name].seen <= rows[name].limit
        # 20 rows through tiles of 16 × 16: ⌈20 / 16⌉ × ⌈16 / 16⌉ of them, two planes or one.
        assert rows[name].cycles == 2 * 20 * bits // 8
        assert rows["layers.1.ffn.up"].cycles is None and rows["token"].sqnr is None
        assert f"{name:40} {bits:4}" in str(found)
        page = found.html("a <b> title")
        assert "a &lt;b&gt; title" in page and page.count("<tr") == len(rows) + 1
        decibel.append(rows[name].sqnr)
    assert decibel[0] > decibel[1] > 15
