"""Manifests on disk: find, list, write, delete.  Everything here blocks; the library calls it in threads."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import trio

from actors.errors import ModelError, ModelNotFound, RequestError
from actors.gateway.library import atomic
from actors.gateway.library.contents import read_bounded, read_contents
from actors.gateway.library.digest import digest_bytes, parse_digest
from actors.gateway.library.entry import Contents
from actors.gateway.library.manifest import MAX_MANIFEST_BYTES, decode_manifest
from actors.gateway.library.names import ModelName, is_valid

log = logging.getLogger(__name__)

LIMITER = trio.CapacityLimiter(4)  # threads that read and write small files of the store

MAX_KEPT_CONTENTS = 512  # models; what they say is small, a licence of 10 kB at most

Moment = datetime
Found = tuple[ModelName, Moment, Contents]


class Reader:
    """One store folder.  What manifests say is kept by digest, so that a list reads one small file each."""

    def __init__(self, models_dir: Path) -> None:
        self.manifests = models_dir / "manifests"
        self.blobs = models_dir / "blobs"
        self._contents: dict[str, Contents] = {}  # by manifest digest, oldest first
        self._told: set[str] = set()  # faults already logged; lists are asked for every few seconds

    def list(self) -> list[Found]:
        """All models in no order.  Manifests that cannot be read are left out and logged, once each."""
        found: list[Found] = []
        for name in self._names():
            try:
                found.append(self._read(name))
            except ModelNotFound:
                continue  # deleted meanwhile
            except ModelError as fault:
                self._tell(f"{name.display} is left out: {fault}")
        return found

    def find(self, wanted: ModelName) -> Found | None:
        """The model of this name, case ignored; None if there is none.  ModelError if it cannot be read."""
        with suppress(ModelNotFound):  # deleted between the look and the read
            for name in self._matches(wanted):
                return self._read(name)
        return None

    def write(self, target: ModelName, make: Callable[[], bytes]) -> None:
        """Write what `make` gives as the manifest of this name, then drop what only its predecessor used."""
        name = next(self._matches(target), None) or self._placed(target)
        path = name.manifest_path(self.manifests)
        before = self._digests_in(path)
        atomic.write_file(make(), path, self.blobs)
        self.drop_unused(before)

    def delete(self, name: ModelName) -> None:
        """Remove a manifest, the folders it leaves empty, and the blobs that no other manifest uses."""
        path = name.manifest_path(self.manifests)
        digests = self._digests_in(path)
        try:
            path.unlink()
        except FileNotFoundError as exc:
            raise ModelNotFound(f"model '{name.display}' not found", where=str(path)) from exc
        atomic.sync_folder(path.parent)
        with suppress(OSError):  # not empty: other tags, other models
            for folder in list(path.parents)[:3]:
                folder.rmdir()
        self.drop_unused(digests)

    def _read(self, name: ModelName) -> Found:
        path = name.manifest_path(self.manifests)
        data = read_bounded(path, MAX_MANIFEST_BYTES)
        try:
            modified_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        except FileNotFoundError as exc:
            raise ModelNotFound(f"model '{name.display}' not found", where=str(path)) from exc
        digest = digest_bytes(data)
        contents = self._contents.get(digest.hex)
        if contents is None:
            contents = read_contents(data, path, self.blobs)
            self._contents[digest.hex] = contents
            while len(self._contents) > MAX_KEPT_CONTENTS:
                self._contents.pop(next(iter(self._contents)), None)
        return name, modified_at, contents

    def _names(self) -> Iterator[ModelName]:
        """Every valid name there is a file for."""
        for host in _folders(self.manifests):
            for namespace in _folders(host):
                for model in _folders(namespace):
                    for tag in _children(model):
                        parts = (host.name, namespace.name, model.name, tag.name)
                        if is_valid(*parts) and tag.is_file():
                            yield ModelName(*parts)

    def _matches(self, wanted: ModelName) -> Iterator[ModelName]:
        """The names on disk that are equal but for case, the exact one first."""
        if wanted.manifest_path(self.manifests).is_file():
            yield wanted
        for host in _same(self.manifests, wanted.host):
            for namespace in _same(host, wanted.namespace):
                for model in _same(namespace, wanted.model):
                    for tag in _same(model, wanted.tag):
                        if tag.is_file():
                            yield ModelName(host.name, namespace.name, model.name, tag.name)

    def _placed(self, target: ModelName) -> ModelName:
        """A new name in the case of the folders it will lie in."""
        folder, parts = self.manifests, list(target.parts)
        for level, part in enumerate(parts):
            folder = next(iter(_same(folder, part)), folder / part)
            parts[level] = folder.name
        return ModelName(*parts)

    def _digests_in(self, path: Path) -> set[str]:
        """File names of the blobs a manifest points at; none when it is absent or unreadable."""
        try:
            manifest = decode_manifest(read_bounded(path, MAX_MANIFEST_BYTES))
            return {parse_digest(layer.digest).file_name for layer in (manifest.config, *manifest.layers)}
        except (ModelError, RequestError, msgspec.DecodeError, UnicodeDecodeError):
            return set()

    def drop_unused(self, candidates: set[str]) -> None:
        """Delete those blobs that no manifest points at; none at all while some manifest cannot be read."""
        unused = set(candidates)
        for path in self.manifests.glob("*/*/*/*"):
            if path.name.startswith(".") or not path.is_file():
                continue  # what file managers leave behind
            digests = self._digests_in(path)
            if not digests:
                log.warning("%s cannot be read: no blob is deleted, as it may use it", path)
                return
            unused -= digests
        for file_name in unused:
            (self.blobs / file_name).unlink(missing_ok=True)

    def _tell(self, text: str) -> None:
        if text not in self._told and len(self._told) < MAX_KEPT_CONTENTS:
            self._told.add(text)
            log.warning("%s", text)


def _children(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it is absent, not a folder, or not ours to read."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as exc:
        raise ModelError(
            f"may not read {folder}", where="library", mend="give this user the right, or set OLLAMA_MODELS"
        ) from exc


def _folders(parent: Path) -> list[Path]:
    return [child for child in _children(parent) if child.is_dir()]


def _same(folder: Path, name: str) -> list[Path]:
    """The children of a folder whose names are equal but for case, an exact one first."""
    wanted = name.lower()
    found = [child for child in _children(folder) if child.name.lower() == wanted]
    return sorted(found, key=lambda child: child.name != name)
