"""stop, rm, cp and create."""

import hashlib
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from actors.cli.context import Cli, pass_cli
from actors.cli.http import CHUNK_BYTES
from actors.cli.tables import clean
from actors.errors import RequestError, Unsupported
from actors.modelfile import Modelfile, decode_modelfile, parse_modelfile

GGUF_MAGIC = b"GGUF"
MAX_MODELFILE_BYTES = 8 << 20


@click.command()
@click.argument("model")
@pass_cli
def stop(cli: Cli, model: str) -> None:
    """Unload a model: running answers end first, new ones load it again."""
    cli.http.post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@pass_cli
def rm(cli: Cli, models: tuple[str, ...]) -> None:
    """Delete models; files that other models use stay."""
    for model in models:
        cli.http.delete("/api/delete", {"model": model})
        click.echo(f"deleted '{model}'")


@click.command()
@click.argument("source")
@click.argument("destination")
@pass_cli
def cp(cli: Cli, source: str, destination: str) -> None:
    """Give a model a second name; the files are shared."""
    cli.http.post("/api/copy", {"source": source, "destination": destination})
    click.echo(f"copied '{source}' to '{destination}'")


@click.command()
@click.argument("model")
@click.option(
    "-f",
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("Modelfile"),
    help="A GGUF file, or a Modelfile (./Modelfile if not given).",
)
@pass_cli
def create(cli: Cli, model: str, file: Path) -> None:
    """Add a model to the library.

    \b
    runtime create mine -f model.gguf     a GGUF file of a supported family
    runtime create mine -f Modelfile

    A Modelfile has FROM, PARAMETER, SYSTEM, TEMPLATE (in Jinja), MESSAGE and LICENSE lines.
    """
    modelfile = read_source(file)
    for warning in modelfile.warnings:
        click.echo(f"{file}: {warning}", err=True)
    body: dict[str, object] = {"model": model, "stream": True}
    path = _source_path(modelfile.base, file.parent)
    if path is not None:
        body["files"] = {path.name: upload(cli, path)}
    else:
        body["from"] = modelfile.base
    body |= {
        key: value
        for key, value in (
            ("template", modelfile.template),
            ("system", modelfile.system),
            ("license", list(modelfile.license) or None),
            ("parameters", dict(modelfile.parameters) or None),
            ("messages", [{"role": r, "content": c} for r, c in modelfile.messages] or None),
        )
        if value is not None
    }
    for item in cli.http.stream("/api/create", body):
        click.echo(clean(str(item.get("status", ""))), err=True)


def read_source(file: Path) -> Modelfile:
    """The Modelfile in a file, or one that names this file if it is GGUF."""
    with file.open("rb") as stream:
        head = stream.read(len(GGUF_MAGIC))
        if head == GGUF_MAGIC:
            return Modelfile(base=str(file.absolute()))
        data = head + stream.read(MAX_MODELFILE_BYTES)
    if len(data) > MAX_MODELFILE_BYTES or b"\0\0" in data:
        raise RequestError(
            f"{file} is neither GGUF nor a Modelfile", where="cli", mend="give a .gguf file or a Modelfile"
        )
    try:
        return parse_modelfile(decode_modelfile(data))
    except (RequestError, Unsupported) as fault:
        raise type(fault)(f"{file}: {fault.message}", where=fault.where, mend=fault.mend) from fault


def upload(cli: Cli, path: Path) -> str:
    """Bring a file to the server, unless it has it; its digest."""
    with path.open("rb") as stream:
        if stream.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise RequestError(f"{path} is not a GGUF file", where="cli", mend="convert it to GGUF first")
    size_bytes = path.stat().st_size
    with _bytes_progress() as progress:
        task = progress.add_task("reading", total=size_bytes)
        state = hashlib.sha256()
        with path.open("rb") as stream:
            while piece := stream.read(CHUNK_BYTES):
                state.update(piece)
                progress.advance(task, len(piece))
        digest = f"sha256:{state.hexdigest()}"
        if not cli.http.has_blob(digest):
            task = progress.add_task("copying", total=size_bytes)
            cli.http.upload(digest, path, lambda n: progress.advance(task, n))
    return digest


def _source_path(base: str, folder: Path) -> Path | None:
    """The file that FROM names, relative to the Modelfile; None if it names a model."""
    path = Path(base).expanduser()
    path = path if path.is_absolute() else folder / path
    if path.is_file():
        return path
    if path.is_dir():
        raise RequestError(
            f"FROM {base} is a folder; only GGUF files are read", where="cli", mend="convert it to GGUF first"
        )
    if base.startswith(("/", "./", "../", "~")) or base.lower().endswith(".gguf"):
        raise RequestError(f"FROM {base}: no such file", where="cli", mend="check the path")
    return None


def _bytes_progress() -> Progress:
    """Bars on standard error, and nothing at all when that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<8}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
