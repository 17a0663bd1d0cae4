"""list, ps and show."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import click

from actors.cli.context import Cli, pass_cli, say_json
from actors.cli.http import Json
from actors.cli.memory import loaded_text
from actors.cli.tables import clean, section, table, terminal_width
from actors.cli.words import human_bytes, human_time
from actors.errors import RequestError

ID_CHARS = 12
SHOWN_LINES = 3  # of a licence or a system text in `show`; the flags print all of it

as_json = click.option("--json", "is_json", is_flag=True, help="Print JSON instead of a table.")


@click.command("list")
@click.argument("prefix", default="")
@as_json
@pass_cli
def list_models(cli: Cli, prefix: str, is_json: bool) -> None:
    """List the models of the library, newest first.

    With PREFIX, only those whose names begin with it.
    """
    answer = cli.http.get("/api/tags")
    models = [model for model in answer["models"] or () if model["name"].lower().startswith(prefix.lower())]
    if is_json:
        say_json({**answer, "models": models})
    else:
        click.echo(list_text(models, datetime.now(UTC)))


def list_text(models: Iterable[Json], now: datetime) -> str:
    """The table of `list`."""
    rows = [
        (
            model["name"],
            model["digest"][:ID_CHARS],
            human_bytes(model["size"]),
            human_time(datetime.fromisoformat(model["modified_at"]), now),
        )
        for model in models
    ]
    return table(("NAME", "ID", "SIZE", "MODIFIED"), rows, terminal_width())


@click.command()
@click.option("--layers", is_flag=True, help="Show the memory of each layer, planned beside measured.")
@click.option("--sum", "is_summed", is_flag=True, help="With --layers: one row for each run of equal layers.")
@as_json
@pass_cli
def ps(cli: Cli, layers: bool, is_summed: bool, is_json: bool) -> None:
    """List the models in memory.

    With --layers, what each takes on every device: weights, cache, compute buffer and overhead, as planned
    and as measured after the load.
    """
    if is_summed and not layers:
        raise click.UsageError("--sum goes with --layers")
    if layers:
        loaded = cli.ask(lambda client: client.loaded())
        if is_json:
            say_json({"models": loaded})
        else:
            blocks = [loaded_text(model, is_summed=is_summed) for model in loaded]
            click.echo("\n\n".join(blocks) if blocks else "no model is loaded")
        return
    answer = cli.http.get("/api/ps")
    if is_json:
        say_json(answer)
    else:
        click.echo(ps_text(answer["models"] or (), datetime.now(UTC), answer.get("waiting") or ()))


def ps_text(models: Iterable[Json], now: datetime, waiting: Iterable[Json] = ()) -> str:
    """The table of `ps`: what is in memory, then what waits to be; UNTIL says how far that is."""
    shown = list(models)
    rows: list[tuple[str, ...]] = [
        (
            model["name"],
            model["digest"][:ID_CHARS],
            human_bytes(model["size"]),
            _processor(model["size"], model.get("size_vram", 0)),
            str(model.get("context_length", 0)),
            model.get("status") or _until(datetime.fromisoformat(model["expires_at"]), now),
        )
        for model in shown
    ]
    loading = {model["name"] for model in shown if model.get("status")}
    rows += [(each["name"], "", "", "", "", _wait(each)) for each in waiting if each["name"] not in loading]
    return table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows, terminal_width())


def _processor(size_bytes: int, vram_bytes: int) -> str:
    if vram_bytes <= 0:
        return "100% CPU"
    if vram_bytes >= size_bytes:
        return "100% GPU"
    gpu = round(100 * vram_bytes / size_bytes)
    return f"{100 - gpu}%/{gpu}% CPU/GPU"


def _wait(waiting: Json) -> str:
    before = int(waiting.get("requests_before", 0))
    return f"{waiting['status']}, {before} before it" if before else str(waiting["status"])


def _until(moment: datetime, now: datetime) -> str:
    return "Stopping..." if moment <= now else human_time(moment, now)


@click.command()
@click.argument("model")
@click.option("--license", is_flag=True, help="Print the licence.")
@click.option("--modelfile", is_flag=True, help="Print a Modelfile that makes the model.")
@click.option("--parameters", is_flag=True, help="Print the parameters.")
@click.option("--system", is_flag=True, help="Print the system text.")
@click.option("--template", is_flag=True, help="Print the template.")
@click.option("-v", "--verbose", is_flag=True, help="Show metadata and tensors too.")
@as_json
@pass_cli
def show(cli: Cli, model: str, verbose: bool, is_json: bool, **parts: bool) -> None:
    """Show what a model is, or print one part of it as it is."""
    asked = [part for part, is_asked in parts.items() if is_asked]
    if len(asked) > 1:
        raise click.UsageError("only one of " + ", ".join(f"--{part}" for part in parts) + " at a time")
    answer = cli.http.post("/api/show", {"model": model, "verbose": verbose})
    if is_json:
        say_json(answer)
    elif asked:
        click.echo(part_text(answer, asked[0], model))
    else:
        click.echo(show_text(answer, verbose=verbose))


def part_text(answer: Json, part: str, model: str) -> str:
    """One part of a model; RequestError when it has none."""
    text = answer.get(part)
    if not text:
        raise RequestError(f"{model} has no {part}", where="cli", mend=f"see 'runtime show {model}'")
    return str(text)


def show_text(answer: Json, *, verbose: bool = False) -> str:
    """The sections of `show`; `verbose` adds Metadata and Tensors."""
    info = cast(Mapping[str, Any], answer.get("model_info") or {})
    details = cast(Mapping[str, Any], answer.get("details") or {})
    architecture = str(info.get("general.architecture", details.get("family", "")))
    facts = [
        ("architecture", architecture),
        ("parameters", str(details.get("parameter_size", ""))),
        ("context length", str(info.get(f"{architecture}.context_length", ""))),
        ("embedding length", str(info.get(f"{architecture}.embedding_length", ""))),
        ("quantization", str(details.get("quantization_level", ""))),
        ("template", "--template prints it" if answer.get("template") else "none"),
    ]
    sections = [
        section("Model", [fact for fact in facts if fact[1]]),
        section("Capabilities", [(str(name), "") for name in answer.get("capabilities") or ()]),
        section("Parameters", _parameter_rows(str(answer.get("parameters") or ""))),
        section("System", _first_lines(str(answer.get("system") or ""))),
        section("License", _first_lines(str(answer.get("license") or ""))),
    ]
    if verbose:
        sections.append(section("Metadata", [(key, _short(info[key])) for key in sorted(info)]))
        sections.append(section("Tensors", [_tensor_row(entry) for entry in answer.get("tensors") or ()]))
    return "\n".join(part for part in sections if part).rstrip("\n")


def _parameter_rows(text: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for line in text.splitlines():
        name, *rest = line.split(maxsplit=1)
        rows.append((name, rest[0] if rest else ""))
    return rows


def _first_lines(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    shown = [(line, "") for line in lines[:SHOWN_LINES]]
    return [*shown, ("...", "")] if len(lines) > SHOWN_LINES else shown


def _tensor_row(entry: Json) -> tuple[str, str]:
    return str(entry["name"]), f"{entry['type']:<8}{entry['shape']}"


def _short(value: object) -> str:
    text = clean(str(value))
    return text if len(text) <= 60 else text[:57] + "..."
