"""The ways to start that are not `runtime up`: systemd's units, and each actor alone from the Procfile."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from actors.supervisor.table import runtime_table
from tests.processes import CEILING_S, ROOT, environment, wait_stats

UNITS = sorted((ROOT / "packaging").glob("runtime.*"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_procfile_lists_the_supervisors_actors() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    listed = {name: command.split()[1:] for name, _, command in (line.partition(": ") for line in lines)}
    assert listed == {entry.name: list(entry.command[1:]) for entry in runtime_table()}


async def test_each_actor_starts_alone_from_the_procfile(run_dir: Path) -> None:
    pytest.importorskip("honcho", reason="honcho is not installed")
    environ = environment(run_dir)
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    honcho = await trio.lowlevel.open_process(
        [sys.executable, "-m", "honcho", "--no-colour", "-f", str(ROOT / "Procfile"), "start"],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with trio.fail_after(CEILING_S):
            pids = {(await wait_stats(run_dir, entry.name)).pid for entry in runtime_table()}
            assert len(pids) == len(runtime_table())
            honcho.terminate()
            await honcho.wait()
            assert list(run_dir.glob("*.sock")) == []  # noqa: ASYNC240  # a test's own files
    finally:
        if honcho.returncode is None:
            os.killpg(honcho.pid, signal.SIGKILL)
            await honcho.wait()
