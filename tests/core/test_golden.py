"""The specification itself, against float64 and cases worked by hand."""

import numpy as np
import pytest

from systolith import golden, tables
from systolith.fixed import multiplier

LENGTHS = (1, 2, 3, 7, 8, 9, 17, 64, 100, 512)
KINDS = ("random", "constant", "one-hot", "ascending", "descending", "extreme", "two values")


def score_rows(kind: str, length: int, rng: np.random.Generator) -> np.ndarray:
    """(4, length) int32."""
    shape = (4, length)
    if kind == "random":
        return rng.integers(-40000, 40000, shape)
    if kind == "constant":
        return np.broadcast_to(rng.integers(-(2**31), 2**31, (4, 1)), shape)
    if kind == "one-hot":
        return np.where(np.arange(length) == rng.integers(0, length, (4, 1)), 20000, -1000)
    if kind in ("ascending", "descending"):
        line = np.arange(length) * rng.integers(1, 2000, (4, 1))
        return line if kind == "ascending" else -line
    if kind == "extreme":
        return rng.choice([-(2**31), 2**31 - 1, 0, 2**31 - 9000], shape)
    return rng.choice([-5000, 5000], shape)


def float_softmax(scores: np.ndarray, mult: int, shift: int, limit: np.ndarray) -> np.ndarray:
    """With the scale that mult and shift represent; exponents saturate at int32 as specified."""
    x = np.clip(scores * (mult * 2.0 ** -(shift + 16)), -(2.0**15), 2.0**15 - 2.0**-16)
    x = np.where(np.arange(scores.shape[1]) < np.reshape(limit, (-1, 1)), x, -np.inf)
    e = np.exp2(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 16])
def test_softmax_is_within_one_lsb_of_float64(kind: str, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for length in LENGTHS:
        for scale in (1 / 4096, 1 / 300, 1e-9):
            scores = score_rows(kind, length, rng)
            mult, shift = multiplier(scale * np.log2(np.e) * 65536)
            limit = rng.integers(1, length + 1, 4)
            got = golden.softmax(scores, mult, shift, limit, bits)
            exact = float_softmax(scores, mult, shift, limit) * (2**bits - 1)
            error = np.abs(got - exact)
            where = np.unravel_index(np.argmax(error), error.shape)
            assert error.max() <= 1, f"{kind}, length {length}, scale {scale}, at {where}"
            assert not got[np.arange(length) >= limit[:, None]].any()
            assert got.min() >= 0 and got.max() < 2**bits


def test_softmax_keeps_the_probability_mass(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-20000, 20000, (20, 512))
    mult, shift = multiplier(np.log2(np.e) * 65536 / 8192)
    sums = golden.softmax(scores, mult, shift, 512, 16).sum(axis=1) / 65535
    assert np.abs(sums - 1).max() <= 0.01, sums


@pytest.mark.parametrize("bits", [8, 16])
def test_softmax_by_hand(bits: int) -> None:
    one = 2**bits - 1
    # mult and shift of one: the scores are exponents with 16 fraction bits.
    unit = (2**15, 15)
    assert golden.softmax([[7]], *unit, 1, bits).tolist() == [[one]]
    # A half lies exactly between two results; the tables bring it to the lower one.
    assert golden.softmax([[7, 7]], *unit, 2, bits).tolist() == [[one // 2] * 2]
    # 2**0 : 2**-1 : 2**-1 is 1/2, 1/4, 1/4.
    got = golden.softmax([[65536, 0, 0]], *unit, 3, bits)[0]
    assert got.tolist() == [one // 2, (one + 1) // 4, (one + 1) // 4]
    # 40 powers of two below the maximum nothing is left, and the limit hides the larger score.
    got = golden.softmax([[0, -40 * 65536, 2**31 - 1]], *unit, 2, bits)[0]
    assert got.tolist() == [one, 0, 0]


def test_softmax_saturates_its_exponents() -> None:
    """Beyond int32 both scores have the same exponent, so they tie."""
    got = golden.softmax([[2**31 - 1, 2**30]], 65535, 0, 2, 16)
    assert got.tolist() == [[32768, 32768]]


def test_softmax_does_not_depend_on_a_common_power_of_two(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-(2**20), 2**20, (4, 50))
    moved = scores + (np.array([[1], [-5], [100], [-3000]]) << 16)
    one = golden.softmax(scores, 2**15, 15, 50, 16)
    assert golden.softmax(moved, 2**15, 15, 50, 16).tolist() == one.tolist()


def test_softmax_scores_beyond_the_limit_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-100000, 100000, (16, 16))
    limit = np.arange(1, 17)
    spoilt = np.where(np.arange(16) < limit[:, None], scores, 2**31 - 1)
    one = golden.softmax(scores, 40000, 14, limit, 16)
    assert golden.softmax(spoilt, 40000, 14, limit, 16).tolist() == one.tolist()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 384, 512, 4095])
def test_norm_is_near_float64(n: int, center: bool, seed: int) -> None:
    rng = np.random.default_rng(seed + n)
    rows = [
        rng.integers(-32768, 32768, n),
        rng.integers(-300, 300, n),
        rng.integers(0, 3, n),
        np.where(np.arange(n) == n // 2, 32767, -32768),
        np.where(np.arange(n) == 0, 20000, 0),
        rng.integers(20000, 20100, n),
    ]
    x = np.array(rows)
    gain = rng.integers(-32768, 32768, n)
    bias = rng.integers(-(2**30), 2**30, n)
    for eps_shift in (0, 20):
        eps = 12345 << eps_shift
        got = golden.norm(x, gain, bias, 15, eps, center=center, bits=16)
        xf = x.astype(np.float64)
        d = xf - xf.mean(axis=1, keepdims=True) if center else xf
        z = d / np.sqrt((d * d).mean(axis=1, keepdims=True) + eps / n**2)
        exact = np.clip(z * gain + bias / 32768, -32768, 32767)
        # One LSB of z is a gain's worth of 2**-15; the reciprocal root has 16 good bits.
        allowed = 1.5 + np.abs(z * gain) * 2.0**-15
        error = np.abs(got - exact) / allowed
        where = np.unravel_index(np.argmax(error), error.shape)
        assert error.max() <= 1, f"row {where[0]}, column {where[1]}, eps_shift {eps_shift}"


def test_norm_by_hand() -> None:
    # Mean 0, variance 1: z is plus and minus one, 2**15.
    x = [[1, -1, 1, -1]]
    unit = {"gain": [1000] * 4, "bias": [0] * 4, "shift": [15] * 4, "eps": 0}
    got = golden.norm(x, **unit, center=True, bits=16)
    assert got.tolist() == [[1000, -1000, 1000, -1000]]
    # A constant row has no deviation: only the bias remains, rounded.
    flat = golden.norm([[5] * 4], [1000] * 4, [16384, 16383, -16384, -16385], [15] * 4, 0,
                       center=True, bits=16)  # fmt: skip
    assert flat.tolist() == [[1, 0, 0, -1]]
    # RMSNorm of a constant row is its sign.
    assert golden.norm([[-7] * 4], **unit, center=False, bits=16).tolist() == [[-1000] * 4]
    # Eight bits saturate.
    assert golden.norm(x, **unit, center=True, bits=8).tolist() == [[127, -128, 127, -128]]
    # All zeros, no epsilon: nothing is divided by.
    assert golden.norm([[0] * 4], **unit, center=False, bits=16).tolist() == [[0] * 4]


def test_norm_epsilon_dominates_where_it_should() -> None:
    """x = ±3, N = 4: q is N²·9 + eps, so eps of 3·N²·9 halves the result."""
    gain, zero, shift = [1000] * 4, [0] * 4, [15] * 4
    got = golden.norm([[3, -3, 3, -3]], gain, zero, shift, 3 * 16 * 9, center=True, bits=16)
    assert got.tolist() == [[500, -500, 500, -500]]


@pytest.mark.parametrize("unsigned", [False, True])
def test_matmul_is_exact(unsigned: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (5, 33)) if unsigned else rng.integers(-32768, 32768, (5, 33))
    w = rng.integers(-127, 128, (33, 9))
    acc = rng.integers(-1000, 1000, (5, 9))
    exact = [[int(acc[i, j]) + sum(int(a[i, k]) * int(w[k, j]) for k in range(33))
              for j in range(9)] for i in range(5)]  # fmt: skip
    assert golden.matmul(a, w, acc).tolist() == exact


def test_matmul_wraps_and_splits_into_planes(seed: int) -> None:
    assert golden.matmul([[1]], [[1]], [[2**31 - 1]]).tolist() == [[-(2**31)]]
    rng = np.random.default_rng(seed)
    a, w = rng.integers(-32768, 32768, (3, 20)), rng.integers(-127, 128, (20, 4))
    planes = golden.matmul(a & 255, w, golden.matmul(a >> 8, w) << 8)
    assert planes.tolist() == golden.matmul(a, w).tolist()


def test_scale_wraps_the_bias_and_saturates_the_result() -> None:
    got = golden.scale(
        [2**31 - 1, 10, -10, 100000], [1, 5, 5, 0], [2**15, 2**15, 2**15, 2**15], [30, 16, 16, 15]
    )
    # 2**31 - 1 + 1 wraps to -2**31; 15/2 and -5/2 are ties; 100000 is above int16.
    assert got.tolist() == [-32768, 8, -2, 32767]
    assert golden.scale([2**31 - 1], [1], [2**15], [31]).tolist() == [-32768]


def test_lookup_by_hand() -> None:
    table = np.zeros((256, 2), dtype=np.int64)
    table[128] = [1000, -512]  # inputs 0..255
    table[127] = [32767, 32767]  # inputs -256..-1
    got = golden.lookup([0, 1, 128, 255, -256, -1, 256], table)
    # Slope: -512 per 256 inputs; the last line saturates.
    assert got.tolist() == [1000, 998, 744, 490, 32767, 32767, 0]
    table[128] = [0, 1]
    assert golden.lookup([127, 128], table).tolist() == [0, 1]  # the tie goes up


def test_lookup8_saturates_its_input() -> None:
    table = tables.exact_table(lambda x: x * 100, 1.0, 1.0, bits=16)
    assert golden.lookup8([-128, -129, 127, 128, 0, 5], table).tolist() == [
        -12800, -12800, 12700, 12700, 0, 500,
    ]  # fmt: skip


def test_add_rounds_once() -> None:
    # 1/2 + 1/2 is 1; rounding each first would give 2.
    assert golden.add([1], [1], 2**15, 2**15, 16, 16).tolist() == [1]
    assert golden.add([3, -3], [0, 0], 2**15, 0, 16, 16).tolist() == [2, -1]
    assert golden.add([32767, -32768], [32767, -32768], 65535, 65535, 15, 16).tolist() == [
        32767,
        -32768,
    ]
    assert golden.add([100], [100], 2**15, 2**15, 15, 8).tolist() == [127]


def test_multiply_rounds_and_saturates() -> None:
    assert golden.multiply([3, -3], [5, 5], 2**15, 16, 16).tolist() == [8, -7]
    assert golden.multiply([-32768], [-32768], 65535, 31, 16).tolist() == [32767]
    assert golden.multiply([-32768], [32767], 65535, 31, 16).tolist() == [-32767]
    assert golden.multiply([-32768], [-32768], 65535, 46, 16).tolist() == [1]


def test_rope_turns_adjacent_pairs(seed: int) -> None:
    half = 2**14
    # By a quarter turn (cos 0, sin 1 - 2**-15) and with one pair per sign of the sine.
    got = golden.rope([100, 200], [0, 0], [-32767, 32767], 15, 16)
    assert got.tolist() == [-200, 100]
    # cos = sin = 1/2: (100 - 200) / 2, (200 + 100) / 2.
    assert golden.rope([100, 200], [half] * 2, [-half, half], 15, 16).tolist() == [-50, 150]
    assert golden.rope([1, 0], [half] * 2, [-half, half], 15, 16).tolist() == [1, 1]
    rng = np.random.default_rng(seed)
    x = rng.integers(-20000, 20000, (6, 8))
    angle = rng.uniform(-3, 3, (6, 4))
    cos = np.repeat(np.rint(np.cos(angle) * 32767), 2, axis=1).astype(np.int64)
    sin = np.stack([-np.sin(angle), np.sin(angle)], axis=-1).reshape(6, 8)
    got = golden.rope(x, cos, np.rint(sin * 32767).astype(np.int64), 15, 16)
    z = (x[:, ::2] + 1j * x[:, 1::2]) * np.exp(1j * angle)
    assert np.abs(got[:, ::2] - z.real).max() <= 3 and np.abs(got[:, 1::2] - z.imag).max() <= 3


def test_argmax_takes_the_first_of_equals() -> None:
    assert golden.argmax([[1, 5, 5, 2], [-3, -9, -3, -3]]).tolist() == [1, 0]
