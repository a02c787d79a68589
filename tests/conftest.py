"""What all tests share: the seed, and the folder where simulators are kept between runs."""

import os
from pathlib import Path

import pytest

# Before numpy is imported: on small products, threads cost more than they bring.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

DEFAULT_SEED = 1


def _seed() -> int:
    return int(os.environ.get("SYSTOLITH_SEED", DEFAULT_SEED))


def pytest_report_header() -> str:
    """Say which seed the run uses, and how to choose another."""
    return f"seed: {_seed()} (set SYSTOLITH_SEED to change it)"


@pytest.fixture
def seed() -> int:
    """Seed of the random stimulus: $SYSTOLITH_SEED or 1. Printed, so that a failure shows it."""
    print(f"seed {_seed()}")
    return _seed()


@pytest.fixture(scope="session")
def build_cache() -> Path:
    """The folder of compiled simulators; kept from run to run, keyed by content."""
    from systolith.cache import cache_directory

    return cache_directory()
