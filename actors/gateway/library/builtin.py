"""The model that comes with the runtime, offered as "handbook" where it lies."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from actors.gateway.library.digest import Digest, digest_bytes, digest_file
from actors.gateway.library.entry import Contents
from actors.gateway.library.manifest import (
    CONFIG_TYPE,
    MODEL_TYPE,
    PARAMS_TYPE,
    Config,
    Manifest,
    OptionValue,
    make_layer,
)
from actors.gateway.library.names import parse_name

BUILTIN_NAME = parse_name("handbook")
BUILTIN_FILE = Path(__file__).parent / "builtin" / "handbook.gguf"
# It is trained on one right answer per question: sampling could only make it worse
BUILTIN_PARAMS: Mapping[str, OptionValue] = {"temperature": 0}


@dataclass(frozen=True, slots=True)
class BuiltInFile:
    """The file as it is now."""

    path: Path
    digest: Digest
    size_bytes: int
    modified_at: datetime


class BuiltIn:
    """The packaged GGUF file; hashed once, and again only if it changes."""

    def __init__(self, path: Path = BUILTIN_FILE) -> None:
        self.path = path
        self._known: tuple[tuple[int, int], BuiltInFile] | None = None

    def read(self) -> BuiltInFile | None:
        """The file, or None when this installation has none.  Blocks: it hashes the file the first time."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return None
        signature = (stat.st_mtime_ns, stat.st_size)
        if self._known is None or self._known[0] != signature:
            modified_at = datetime.fromtimestamp(stat.st_mtime, UTC)
            file = BuiltInFile(self.path, digest_file(self.path), stat.st_size, modified_at)
            self._known = (signature, file)
        return self._known[1]

    def contents(self, file: BuiltInFile, config: Config) -> Contents:
        """What the model would consist of if it lay in the store."""
        config_data, params_data = msgspec.json.encode(config), msgspec.json.encode(dict(BUILTIN_PARAMS))
        manifest = Manifest(
            config=make_layer(CONFIG_TYPE, digest_bytes(config_data), len(config_data)),
            layers=(
                make_layer(MODEL_TYPE, file.digest, file.size_bytes),
                make_layer(PARAMS_TYPE, digest_bytes(params_data), len(params_data)),
            ),
        )
        data = msgspec.json.encode(manifest)
        return Contents(
            digest=digest_bytes(data),
            size_bytes=manifest.config.size + sum(layer.size for layer in manifest.layers),
            config=config,
            manifest=manifest,
            data=data,
            gguf=file.path,
            gguf_digest=file.digest,
            gguf_bytes=file.size_bytes,
            template=None,
            system="",
            params=BUILTIN_PARAMS,
            messages=(),
            license=(),
        )
