"""Showing how a load goes: the request goes by HTTP, its progress is read from the scheduler's socket."""

import threading
from collections.abc import Callable

import trio
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, Task, TaskID, TextColumn
from rich.text import Text

from actors.cli.context import Cli
from actors.cli.tables import clean
from actors.cli.talk import Settings, load
from actors.client import open_client
from actors.errors import RuntimeFault
from actors.protocol import LoadProgress, WaitingModel

LOOK_EVERY_S = 0.1  # a bar that moves less often looks stuck


def load_with_progress(cli: Cli, settings: Settings) -> None:
    """Load the model; a spinner or a bar on standard error meanwhile, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        load(cli.http, settings)
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), _Amount(binary_units=True))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"loading {settings.model}", total=None)
        _while_watching(
            cli, settings.model, lambda wait: _show(progress, task, wait), lambda: load(cli.http, settings)
        )


class _Amount(DownloadColumn):
    """Bytes done of bytes in all; nothing in the phases that have no bytes."""

    def render(self, task: Task) -> Text:
        """For rich."""
        return Text() if task.total is None else super().render(task)


def _while_watching(
    cli: Cli, name: str, show: Callable[[WaitingModel], None], work: Callable[[], object]
) -> None:
    """Do the work on this thread, while another shows what the model waits for; needs the sockets for it."""
    if not cli.is_local:
        work()
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(cli, name, show, done), name="progress", daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join(timeout=1.0)


def _watch(cli: Cli, name: str, show: Callable[[WaitingModel], None], done: threading.Event) -> None:
    async def look() -> None:
        async with open_client(cli.config.run_dir, name="cli") as client:
            digest = (await client.resolve(name)).digest
            while not done.is_set():
                for wait in await client.waiting():
                    if wait.model.digest == digest:
                        show(wait)
                await trio.sleep(LOOK_EVERY_S)

    try:
        trio.run(look)
    except RuntimeFault:
        return  # the load itself tells of anything that matters; this is only the picture of it


def _show(progress: Progress, task: TaskID, wait: WaitingModel) -> None:
    state = wait.progress or LoadProgress(phase="starting")
    before = f"{wait.position} requests before it; " if wait.position else ""
    progress.update(
        task,
        description=f"{wait.model.name}: {before}{clean(wait.reason)}",
        completed=state.done_bytes,
        total=state.total_bytes or None,
    )
