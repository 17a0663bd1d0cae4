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


def test_kernels_import_nothing_of_the_actors() -> None:
    assert offenders("kernels", ["actors"]) == []


@pytest.mark.parametrize("actor", SEALED)
def test_actors_do_not_import_one_another(actor: str) -> None:
    # the command line starts the supervisor: `runtime up` is its main
    allowed = {"cli": {"supervisor"}}.get(actor, set())
    others = [f"actors.{other}" for other in SEALED if other != actor and other not in allowed]
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
    "module", ["gateway", "scheduler", "discovery.service", "supervisor.main", "runner.host"]
)
def test_what_must_start_fast_loads_nothing_heavy(module: str) -> None:
    entry = f"actors.{module}" if "." in module else f"actors.{module}.__main__"
    if (
        not (ROOT / (entry.replace(".", "/") + ".py")).exists()
        and not (ROOT / entry.replace(".", "/")).is_dir()
    ):
        pytest.skip(f"{entry} is not there")
    # found before __main__ runs: the module is loaded without being the program
    code = (
        "import importlib, sys, actors.actor as a, runpy\n"
        "a.main = lambda *_: 0\n"
        "try: importlib.import_module(sys.argv[1])\n"
        "except SystemExit: pass\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, entry], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == ""
