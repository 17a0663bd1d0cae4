"""The version of this installation, as `pyproject.toml` has it: asking its metadata takes 20 ms."""

VERSION = "0.1.0"
