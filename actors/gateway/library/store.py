"""The model library: models by name, in Ollama's layout on disk.

    <models_dir>/manifests/<host>/<namespace>/<model>/<tag>     JSON
    <models_dir>/blobs/sha256-<hex>                             content addressed

A folder that Ollama made is served as it lies.  Nothing is written or pruned except by create, copy, delete
and upload.  One process at a time should write; readers of another process always see whole files.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from actors.errors import ModelError, ModelNotFound, RequestError, RuntimeFault
from actors.gateway.library import create, disk
from actors.gateway.library.blobs import Blobs
from actors.gateway.library.builtin import BUILTIN_NAME, BuiltIn
from actors.gateway.library.digest import parse_digest
from actors.gateway.library.entry import Contents, Entry
from actors.gateway.library.names import ModelName, parse_name
from actors.gateway.library.recipe import Recipe
from actors.protocol import ModelInfo

log = logging.getLogger(__name__)

Inspector = Callable[[str], Awaitable[ModelInfo]]
Progress = Callable[[str], Awaitable[None]]

BUILTIN_S = 3.0  # that a listing waits, the first time, for what the built-in model says of itself
MAX_KEPT_INFOS = 64  # about 100 kB each
RECENT_S = 1.0  # that another process's change may go unnoticed by those who generate
MAX_RECENT = 64


async def _no_progress(_status: str) -> None: ...


class Library:
    """The models of one folder, and the one that comes with the runtime.

    `inspect` reads a GGUF header somewhere else (the runner host); its caller's deadlines are its own.
    `check_template` raises RequestError for what is no template.
    """

    def __init__(
        self,
        models_dir: Path,
        inspect: Inspector,
        builtin: BuiltIn | None = None,
        *,
        check_template: create.CheckTemplate,
    ) -> None:
        self.models_dir = models_dir
        self.blobs = Blobs(models_dir)
        self._reader = disk.Reader(models_dir)
        self._inspect_path = inspect
        self._check_template = check_template
        self._builtin = builtin if builtin is not None else BuiltIn()
        self._infos: dict[str, ModelInfo] = {}  # by digest of the GGUF blob, oldest first
        self._inspecting = trio.Lock()
        self._recent: dict[str, tuple[float, Entry]] = {}  # by key, and when it was found
        self._writing = trio.Lock()  # a blob must not be deleted between create's look and its manifest

    async def list(self) -> list[Entry]:
        """Every model, newest first, the built-in one last; unreadable manifests are logged and left out."""
        found = await trio.to_thread.run_sync(self._reader.list, limiter=disk.LIMITER)
        entries = [self._entry(*item) for item in found]
        entries.sort(key=lambda entry: entry.modified_at, reverse=True)
        if all(entry.name.key != BUILTIN_NAME.key for entry in entries):
            try:
                with trio.fail_after(BUILTIN_S):
                    if (builtin := await self._find_builtin()) is not None:
                        entries.append(builtin)
            except (RuntimeFault, trio.TooSlowError) as fault:
                log.warning("the built-in model is left out of the list: %s", fault or "nobody reads it")
        return entries

    async def warm(self) -> None:
        """Read now what the first listing would wait for; a failure is the next reader's to report."""
        try:
            await self._find_builtin()
        except RuntimeFault as fault:
            log.info("the built-in model could not be read yet: %s", fault)

    async def find(self, name: str) -> Entry:
        """The model of this name, case ignored.

        RequestError "invalid model name", ModelNotFound "model 'x' not found", ModelError for a bad manifest.
        """
        wanted = parse_name(name)
        found = await trio.to_thread.run_sync(self._reader.find, wanted, limiter=disk.LIMITER)
        if found is not None:
            return self._entry(*found)
        if wanted.key == BUILTIN_NAME.key and (builtin := await self._find_builtin()) is not None:
            return builtin
        raise ModelNotFound(f"model '{name}' not found", where="library", mend="see 'runtime list'")

    async def recall(self, name: str) -> Entry:
        """As `find`, or as it was RECENT_S ago at most and we changed nothing: looking takes a thread."""
        key, now_s = parse_name(name).key, trio.current_time()
        found_s, entry = self._recent.get(key, (-RECENT_S, None))
        if entry is None or now_s - found_s >= RECENT_S:
            recent, entry = self._recent, await self.find(name)
            if len(recent) >= MAX_RECENT:
                recent.clear()
            recent[key] = (now_s, entry)  # of a dict that was replaced meanwhile nobody reads any more
        return entry

    async def copy(self, source: str, destination: str) -> None:
        """Give a model a second name; the blobs are shared.  Errors as find."""
        target = parse_name(destination)
        entry = await self.find(source)
        await self._write(target, partial(create.stored_manifest, self.blobs, entry))

    async def delete(self, name: str) -> None:
        """Remove a name, and those of its blobs that no other model uses.  Errors as find."""
        entry = await self.find(name)
        if entry.is_builtin:
            raise RequestError(
                f"{entry.name.display} comes with the runtime and cannot be deleted",
                where="library",
                mend="create a model of the same name to hide it",
            )
        async with self._changing():
            await trio.to_thread.run_sync(self._reader.delete, entry.name, limiter=disk.LIMITER)

    async def create(
        self, name: str, recipe: Recipe, progress: Progress = _no_progress, *, file: Path | None = None
    ) -> Entry:
        """Make (or replace) a model from what the recipe names, or from a GGUF file of this machine.

        The GGUF is read by `inspect` first: what no runner here can run is refused by name (Unsupported).
        `progress` gets Ollama's status texts, "success" last.  RequestError for a recipe that makes no sense.
        """
        target = parse_name(name)
        try:
            make = await create.prepare(
                recipe, self.find, self.blobs, self._inspect_path, self._check_template, progress, file
            )
        except ModelError:
            await self._drop_refused(recipe)
            raise
        await progress("writing manifest")
        await self._write(target, make)
        await progress("success")
        return await self.find(name)

    async def has_blob(self, digest: str) -> bool:
        """HEAD /api/blobs/:digest.  RequestError for a malformed digest."""
        path = self.blobs.path(parse_digest(digest))
        return await trio.to_thread.run_sync(path.is_file, limiter=disk.LIMITER)

    async def upload(self, digest: str, chunks: AsyncIterable[bytes]) -> bool:
        """POST /api/blobs/:digest: store a body as a blob; False when it was there already (body not read).

        RequestError when the body has another digest; then, or when the caller is cancelled, nothing stays.
        """
        wanted = parse_digest(digest)
        if await self.has_blob(digest):
            return False
        await self.blobs.receive(wanted, chunks)
        return True

    async def _write(self, target: ModelName, make: Callable[[], bytes]) -> None:
        """Write the manifest that `make` (blocking) gives, under the case on disk if the name exists."""
        async with self._changing():
            await trio.to_thread.run_sync(self._reader.write, target, make, limiter=disk.LIMITER)

    @asynccontextmanager
    async def _changing(self) -> AsyncGenerator[None, None]:
        """Alone, and what was found before is looked up again."""
        async with self._writing:
            try:
                yield
            finally:
                self._recent = {}

    async def _drop_refused(self, recipe: Recipe) -> None:
        """Delete what was uploaded for a model that cannot be, unless a model uses it: nobody else would."""
        names = {parse_digest(digest).file_name for digest in recipe.files.values()}
        async with self._writing:
            await trio.to_thread.run_sync(self._reader.drop_unused, names, limiter=disk.LIMITER)

    async def _find_builtin(self) -> Entry | None:
        """The built-in model; None when this installation has no such file."""
        file = await trio.to_thread.run_sync(self._builtin.read, limiter=disk.LIMITER)
        if file is None:
            return None
        info = await self._info_at(str(file.digest), str(file.path))
        return Entry(
            name=BUILTIN_NAME,
            modified_at=file.modified_at,
            contents=self._builtin.contents(file, create.config_of(info)),
            inspect=self._info,
            is_builtin=True,
        )

    def _entry(self, name: ModelName, modified_at: disk.Moment, contents: Contents) -> Entry:
        return Entry(name=name, modified_at=modified_at, contents=contents, inspect=self._info)

    async def _info(self, entry: Entry) -> ModelInfo:
        spec = entry.spec()
        return await self._info_at(spec.digest, spec.path)

    async def _info_at(self, digest: str, path: str) -> ModelInfo:
        """Inspect once per digest; callers of the same file wait for the one who asked first."""
        if digest not in self._infos:
            async with self._inspecting:
                if digest not in self._infos:
                    self._infos[digest] = await self._inspect_path(path)
                while len(self._infos) > MAX_KEPT_INFOS:
                    del self._infos[next(iter(self._infos))]
        return self._infos[digest]
