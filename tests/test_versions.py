"""The oldest versions that are supported stand in two files, which must agree: only what is tested may be promised."""

import re
import tomllib
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", ["jax", "flax", "orbax-checkpoint"])
def test_the_oldest_that_is_promised_is_the_oldest_that_is_tested(name: str):
    promised = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    tested = (TESTS / "oldest.txt").read_text()
    (bound,) = [line.removeprefix(f"{name}>=") for line in promised if line.startswith(f"{name}>=")]
    assert re.findall(rf"^{name}==(.+)$", tested, re.MULTILINE) == [bound]
