"""Imports point one way (DESIGN section 3), and what must start fast imports nothing heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SEALED = ("cli", "discovery", "gateway", "runner", "scheduler", "supervisor")
HEAVY = ("numpy", "cupy", "pynvml", "tokenizers", "gguf", "torch", "PIL")


def imports_of(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in it, by full name."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *((node.module or "").split(".") if node.module else ())))
            yield from (f"{base}.{alias.name}" for alias in node.names)
            yield base


def is_of(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def offenders(folder: str, forbidden: list[str]) -> list[str]:
    return sorted(
        {
            f"{path.relative_to(ROOT)} imports {module}"
            for path in (ROOT / folder).rglob("*.py")
            for module in imports_of(path)
            if any(is_of(module, package) for package in forbidden)
        }
    )


def test_every_actor_is_under_the_rule() -> None:
    # a folder that is renamed, or new, must not pass because nobody looks at it
    assert {path.parent.name for path in (ROOT / "actors").glob("*/__init__.py")} == set(SEALED)


def test_an_arrow_the_wrong_way_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    lines = ("from actors import scheduler", "import actors.scheduler.queue", "from ..scheduler import queue")
    folder = tmp_path / "actors" / "gateway"
    folder.mkdir(parents=True)
    for i, line in enumerate(lines):
        (folder / f"m{i}.py").write_text(f"def late() -> None:\n    {line}\n")
    found = offenders("actors/gateway", ["actors.scheduler"])
    assert {line.partition(" ")[0] for line in found} == {
        f"actors/gateway/m{i}.py" for i in range(len(lines))
    }


def test_kernels_import_nothing_of_the_actors() -> None:
    assert offenders("kernels", ["actors"]) == []


@pytest.mark.parametrize("actor", SEALED)
def test_actors_do_not_import_one_another(actor: str) -> None:
    # `runtime up` becomes the supervisor's process: a command, not an import
    others = [f"actors.{other}" for other in SEALED if other != actor]
    assert offenders(f"actors/{actor}", others) == []


@pytest.mark.parametrize("actor", [actor for actor in SEALED if actor != "runner"])
def test_only_the_runner_imports_kernels(actor: str) -> None:
    assert offenders(f"actors/{actor}", ["kernels"]) == []


def test_what_is_shared_imports_no_actor() -> None:
    sealed = [f"actors.{actor}" for actor in SEALED] + ["kernels"]
    found = [
        f"{path.name} imports {module}"
        for path in (ROOT / "actors").glob("*.py")
        for module in imports_of(path)
        if any(is_of(module, package) for package in sealed)
    ]
    assert found == []


@pytest.mark.parametrize(
    "entry",
    [
        "actors.cli.main",
        "actors.discovery.__main__",
        "actors.gateway.__main__",
        "actors.gateway.templates.worker",
        "actors.runner.host.__main__",
        "actors.scheduler.__main__",
        "actors.supervisor.main",
    ],
)
def test_what_must_start_fast_loads_nothing_heavy(entry: str) -> None:
    # found before __main__ runs: the module is loaded without being the program
    code = (
        "import importlib, sys, actors.actor as a, runpy\n"
        "a.main = lambda *_: 0\n"
        "try: importlib.import_module(sys.argv[1])\n"
        "except SystemExit: pass\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, entry], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.strip() == ""


def test_the_gateway_leaves_jinja_to_its_workers() -> None:
    code = "import sys, actors.gateway.service\nprint('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"
