"""The version that actors say is the one that is packaged."""

import tomllib
from pathlib import Path

from actors.version import VERSION

PROJECT = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"


def test_the_constant_is_the_version_of_the_package() -> None:
    assert tomllib.loads(PROJECT.read_text())["project"]["version"] == VERSION
