"""What the tests share: the real data, seeded random numbers, the instruction-set levels."""

import importlib.util
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llama2c

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("LLAMA2C_TEST_DATA") or ROOT.parent / "shared" / "data")


def is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "0", "false")


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """A function from a name such as "models/stories260K.bin" to the path of that real file.

    A missing one is a failure in CI and a skip elsewhere. CI that cannot have the data, whose
    licences do not let us publish it, says so by LLAMA2C_DATA_OPTIONAL=1.
    """

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            reason = f"no {path}: LLAMA2C_TEST_DATA names the directory of the real data"
            if is_set("CI") and not is_set("LLAMA2C_DATA_OPTIONAL"):
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
        return path

    return find


@pytest.fixture(scope="session")
def data(data_file: Callable[[str], Path]) -> Path:
    """The directory of the real data."""
    return data_file("")


def require_modules(*names: str, extra: str) -> None:
    """Without these packages a failure in CI, unless LLAMA2C_PARITY_OPTIONAL=1, and a skip elsewhere."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"no {' and no '.join(missing)}: pip install 'llama2c[{extra}]'"
        if is_set("CI") and not is_set("LLAMA2C_PARITY_OPTIONAL"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def objects(name: str) -> tuple[str, ...]:
    """For csrc/build.py: to link what a build of the package has compiled, if the environment says where that is."""
    return ("--objects", os.environ[name]) if is_set(name) else ()


class Rng(np.random.Generator):
    """A generator whose repr, which pytest shows when a test fails, is what repeats it."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.seed = seed

    def __repr__(self) -> str:
        return f"Rng(LLAMA2C_TEST_SEED={self.seed})"


@pytest.fixture
def rng() -> Rng:
    """Random numbers, others in every run; LLAMA2C_TEST_SEED repeats those of a failure."""
    return Rng(int(os.environ.get("LLAMA2C_TEST_SEED") or secrets.randbits(32)))


FORCED = os.environ.get("LLAMA2C_ISA")


@pytest.fixture(params=[FORCED] if FORCED else llama2c.available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction-set level that this machine runs; LLAMA2C_ISA alone where it is set."""
    level: str = request.param
    return level
