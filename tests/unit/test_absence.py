"""Which vendors' devices can be on a machine, as its files say."""

from pathlib import Path

import pytest

from actors.discovery.absence import why_absent


def card(pci: Path, vendor: str, kind: str = "0x030000") -> None:
    folder = pci / "0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(vendor + "\n")
    (folder / "class").write_text(kind + "\n")


@pytest.mark.parametrize("library", ["cuda", "rocm"])
def test_without_a_card_and_without_a_drivers_files_a_vendor_is_absent(tmp_path: Path, library: str) -> None:
    reason = why_absent(library, tmp_path / "pci", tmp_path)
    assert reason is not None
    assert "no driver's file" in reason


@pytest.mark.parametrize(("library", "vendor"), [("cuda", "0x10de"), ("rocm", "0x1002")])
def test_a_card_without_a_driver_is_worth_a_probe(tmp_path: Path, library: str, vendor: str) -> None:
    card(tmp_path, vendor)
    assert why_absent(library, tmp_path, tmp_path) is None


def test_another_vendors_card_is_none(tmp_path: Path) -> None:
    card(tmp_path, "0x10de")
    assert why_absent("rocm", tmp_path, tmp_path) is not None


@pytest.mark.parametrize(
    ("library", "file"), [("cuda", "nvidiactl"), ("cuda", "nvmap"), ("cuda", "dxg"), ("rocm", "kfd")]
)
def test_a_drivers_file_is_worth_a_probe_in_a_container_without_a_bus(
    tmp_path: Path, library: str, file: str
) -> None:
    (tmp_path / file).touch()
    assert why_absent(library, tmp_path / "no-bus", tmp_path) is None


@pytest.mark.parametrize("library", ["cpu", "sim"])
def test_what_needs_no_card_is_never_absent(tmp_path: Path, library: str) -> None:
    assert why_absent(library, tmp_path, tmp_path) is None
