"""The behavioural AXI memory, with cocotbext-axi as the master: an independent opinion."""

import pytest

from systolith.sim.build import Build, build
from systolith.sim.memory import AXI_MEMORY
from systolith.sim.runner import BenchFailure, run

SIZE_BYTES = 1 << 14
IDEAL: dict[str, int] = {}
SLOW = {"latency": 40, "write_latency": 10, "bandwidth": 100}
STALLS = {
    "latency": 5, "stall_ar": 100, "stall_r": 128, "stall_aw": 100, "stall_w": 128, "stall_b": 200,
    "stall_seed": 77,
}  # fmt: skip


def _build(data_width: int, **parameters: int) -> Build:
    return build(
        "",
        "axi_memory",
        sources=[AXI_MEMORY],
        parameters={
            "DATA_WIDTH": data_width,
            "SIZE_BYTES": SIZE_BYTES,
            "ID_WIDTH": 4,
            **parameters,
        },
    )


@pytest.mark.parametrize(
    ("data_width", "memory"),
    [(64, IDEAL), (64, SLOW), (64, STALLS), (32, STALLS), (256, STALLS)],
    ids=["ideal", "slow", "stalls", "stalls32", "stalls256"],
)
def test_random_traffic(data_width: int, memory: dict[str, int], seed: int) -> None:
    arguments = {"memory": memory, "transfers": 12, "size_bytes": SIZE_BYTES, "max_burst": 256}
    result = run(_build(data_width), "axi_memory", arguments, seed=seed, test="random_traffic")
    assert result["reads"] > 0 and result["writes"] > 0


@pytest.mark.parametrize("latency", [2, 3, 40])
def test_latency_is_exact_and_bursts_stream(latency: int) -> None:
    arguments = {"latency": latency, "bandwidth": 0}
    result = run(_build(64), "axi_memory", arguments, test="latency_and_throughput")
    assert result == {"latency": latency, "cycles": 32, "gaps": [1]}
    result = run(_build(64), "axi_memory", arguments, test="write_throughput")
    assert result == {"latency": latency, "cycles": 32}


@pytest.mark.parametrize("bandwidth", [255, 128, 100, 9])
@pytest.mark.parametrize("test", ["latency_and_throughput", "write_throughput"])
def test_bandwidth_limits_each_direction(bandwidth: int, test: str) -> None:
    arguments = {"latency": 2, "bandwidth": bandwidth}
    result = run(_build(64), "axi_memory", arguments, test=test)
    assert abs(result["cycles"] - 1 - 31 * 256 / bandwidth) <= 2


def test_errors_are_answered() -> None:
    run(_build(64), "axi_memory", {"size_bytes": SIZE_BYTES}, test="errors")


EXPECTED = {
    "fine": "00", "cross": "x1", "size": "x2", "wrap": "x3", "drop": "x4", "change": "x5",
    "early last": "37", "late last": "37", "strobe": "38",
}  # fmt: skip


@pytest.mark.parametrize("strict", [0, 1])
def test_protocol_rules(strict: int) -> None:
    codes = run(_build(64, STRICT=strict), "axi_memory", {}, test="protocol")["codes"]
    assert len(codes) == 20
    for name, code in codes.items():
        channel, _, rule = name.partition(" ")
        expected = {**EXPECTED, "narrow": "x6" if strict else "00"}[rule]
        if name in ("w fine", "w strobe") and strict:
            expected = "26"  # these use an unaligned burst
        assert code == expected.replace("x", {"ar": "1", "aw": "2", "w": "3"}[channel]), name


def test_missing_image_fails() -> None:
    with pytest.raises(BenchFailure, match=r"nowhere\.bin"):
        run(
            _build(64),
            "axi_memory",
            {"latency": 2, "bandwidth": 0},
            test="latency_and_throughput",
            plusargs=["+axi_memory_image=nowhere.bin"],
        )
