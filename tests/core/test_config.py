import json
from dataclasses import replace

import pytest

from systolith.config import PRESETS, Config, ConfigError, load_config


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_json(name):
    assert Config.from_json(PRESETS[name].to_json()) == PRESETS[name]


def test_every_parameter_is_in_the_fingerprint():
    base = PRESETS["small"]
    changed = [
        replace(base, **{name: value})
        for name, value in {
            "dim": 16, "lanes": 8, "bus_bytes": 4, "activation_rows": 64, "weight_rows": 64,
            "weight_ports": 2, "accumulator_rows": 64, "parameter_rows": 64, "table_slots": 2,
            "max_length": 64, "max_features": 64, "queue_depth": 4, "max_burst": 16,
            "instruction_rows": 64,
            "outstanding": 1,
        }.items()
    ]  # fmt: skip
    assert len({config.hash for config in (base, *changed)}) == len(changed) + 1
    assert len(changed) == len(json.loads(base.to_json()))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dim": 5}, "dim must be one of 4, 8, 16, 32, not 5"),
        ({"dim": 8.0}, "dim must be a positive integer, not 8.0"),
        ({"lanes": 3}, r"lanes must be one of \[2, 4, 8\] at dim 8, not 3"),
        ({"dim": 32, "lanes": 2}, r"lanes must be one of \[4, 8, 16, 32\] at dim 32, not 2"),
        ({"bus_bytes": 16}, r"bus_bytes must be one of \[4, 8\] at dim 8, not 16"),
        ({"weight_rows": 1000}, "weight_rows must be a power of two from 32 to 1048576, not 1000"),
        ({"weight_ports": 3}, "weight_ports must be one of 1, 2, 4, not 3"),
        ({"table_slots": 16}, "table_slots must be a power of two from 1 to 8, not 16"),
        ({"max_length": 8192}, "max_length must be a power of two from 16 to 4096, not 8192"),
        ({"queue_depth": 1}, "queue_depth must be from 2 to 64, not 1"),
        ({"instruction_rows": 48}, "instruction_rows must be 0 or a power of two from 32 to 4096, "
         "not 48"),
        ({"max_burst": 257}, "max_burst must be from 1 to 256, not 257"),
        ({"outstanding": 0}, "outstanding must be a positive integer, not 0"),
    ],
)
def test_wrong_parameters_are_named(changes, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Config(**changes)


def test_configurations_from_files(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(replace(PRESETS["tiny"], max_length=64).to_json())
    assert load_config(str(path)).max_length == 64
    assert load_config("bench") is PRESETS["bench"]
    with pytest.raises(ConfigError, match="one of tiny, small, lean, resident, bench, or a JSON"):
        load_config("huge")
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_config(str(path))
    path.write_text('{"dimension": 8}')
    with pytest.raises(ConfigError, match="Unknown configuration parameter 'dimension'"):
        load_config(str(path))
    path.write_text("[]")
    with pytest.raises(ConfigError, match="must be a JSON object"):
        load_config(str(path))
