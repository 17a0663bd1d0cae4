"""doctor: which devices there are, which are not used, and how to mend that."""

import subprocess
import sys
from collections.abc import Iterable

import click
import msgspec

from actors.cli.context import Cli, pass_cli, say_json
from actors.cli.listings import as_json
from actors.cli.tables import clean, section
from actors.cli.words import memory_bytes
from actors.errors import PeerGone
from actors.protocol import Device, Diagnosis, HostReport, LibraryReport
from actors.settings import VISIBILITY

COMMAND = (sys.executable, "-m", "actors.discovery", "--diagnose")
GIGA, MILLI = 1e9, 1e3
SPARE_S = 10.0  # beyond the probes' own time-outs, for processes to start on a busy machine


@click.command()
@as_json
@pass_cli
def doctor(cli: Cli, is_json: bool) -> int:
    """Explain which devices there are, which are not used, and why.

    Asks the runtime that is up, or else looks for devices itself. Exits with 1 if models can run nowhere.
    """
    diagnosis, source = ask(cli)
    if is_json:
        say_json(diagnosis)
    else:
        click.echo(doctor_text(diagnosis, source))
    return 0 if any(device.is_usable for device in diagnosis.devices) else 1


def ask(cli: Cli) -> tuple[Diagnosis, str]:
    """The diagnosis, and in words where it comes from."""
    # a look at a library, and then the checks of its devices
    within_s = 2 * cli.config.probe_timeout_s + SPARE_S
    if not cli.is_local:
        return look(within_s), "no runtime is up here: this is what one would find now"
    try:
        answer = cli.ask(lambda client: client.diagnose(), within_s)
    except PeerGone as gone:
        return look(within_s), f"looked at without the runtime: {gone.message}"
    return answer, "as the runtime that is up sees it"


def look(within_s: float) -> Diagnosis:
    """Look for devices in a discovery of our own, which ends when it has found them."""
    try:
        done = subprocess.run(COMMAND, stdin=subprocess.DEVNULL, capture_output=True, timeout=within_s)
    except subprocess.TimeoutExpired as exc:
        raise PeerGone(f"looking for devices took longer than {within_s:g} s", where="cli") from exc
    try:
        return msgspec.json.decode(done.stdout, type=Diagnosis)
    except msgspec.DecodeError as exc:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise PeerGone(f"looking for devices failed: {said}", where="cli") from exc


def doctor_text(diagnosis: Diagnosis, source: str) -> str:
    """The report in words."""
    versions = diagnosis.versions
    head = "  ".join(f"{name} {version}" for name, version in versions.items())
    cpu = diagnosis.cpu
    processor = [
        ("model", cpu.model),
        ("cores", f"{cpu.n_cores} that do work, {cpu.n_threads} threads"),
        ("instructions", ", ".join(cpu.instruction_sets) or "none that kernels are made for"),
    ]
    sections = [
        section("Devices", [_usable_row(device) for device in diagnosis.devices]),
        section("Found, and not used", [_filtered_row(device) for device in diagnosis.filtered]),
        section("Libraries", [row for report in diagnosis.libraries for row in _library_rows(report)]),
        section("Processor", processor),
        section("Host memory", _memory_rows(diagnosis.host)),
        section("Variables", list(_variable_rows(diagnosis))),
    ]
    return "\n".join([clean(head), clean(source), "", *(part for part in sections if part)]).rstrip("\n")


def _usable_row(device: Device) -> tuple[str, str]:
    free, total = memory_bytes(device.free_bytes), memory_bytes(device.total_bytes)
    words = [device.name, f"{free} free of {total}{_source(device)}"]
    words += ["integrated"] if device.is_integrated else []
    words += [f"compute {device.compute}"] if device.compute else []
    words += [f"reads {device.bytes_per_s / GIGA:.3g} GB/s"] if device.bytes_per_s else []
    words += [f"a copy takes {MILLI * device.copy_s:.2g} ms"] if device.copy_s else []
    words += [] if device.is_usable else [f"not usable: {device.reason}"]
    return device.id, ", ".join(words)


def _source(device: Device) -> str:
    """Where the figure comes from, if not from what everybody expects."""
    if device.memory_from == "library":
        return " (as of the last look)"
    return " (the host's)" if device.memory_from == "host" and device.library != "cpu" else ""


def _filtered_row(device: Device) -> tuple[str, str]:
    size = f" with {memory_bytes(device.total_bytes)}" if device.total_bytes else ""
    kind = "integrated, " if device.is_integrated else ""
    return device.id, f"{device.name}{size} ({kind}{device.library}): {device.reason}"


def _library_rows(report: LibraryReport) -> Iterable[tuple[str, str]]:
    text = report.state if not report.reason else f"{report.state}: {report.reason}"
    yield report.library, text
    if report.facts:
        yield "", ", ".join(f"{name} {value}" for name, value in report.facts.items())
    if report.mend:
        yield "", f"to mend it: {report.mend}"
    if report.next_try_s is not None:
        yield "", f"is looked at again in {report.next_try_s:.0f} s"


def _memory_rows(host: HostReport) -> list[tuple[str, str]]:
    swap = f"{memory_bytes(host.swap_free_bytes)} of {memory_bytes(host.swap_total_bytes)}, not counted on"
    rows = [
        ("free", f"{memory_bytes(host.free_bytes)} of {memory_bytes(host.total_bytes)}"),
        ("free swap", swap if host.swap_total_bytes else "there is none"),
    ]
    for limit in host.limits:
        used, most = memory_bytes(limit.used_bytes), memory_bytes(limit.limit_bytes)
        rows.append(("limit", f"{most} for the control group {limit.path}, {used} used, page cache included"))
    return rows


def _variable_rows(diagnosis: Diagnosis) -> Iterable[tuple[str, str]]:
    for name, value in diagnosis.variables.items():
        yield f'{name}="{value}"', VISIBILITY.get(name, "")
    for name, why in diagnosis.idle_variables.items():
        yield name, f"is set, and decides nothing: {why}"
