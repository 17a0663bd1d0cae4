"""Settings: a TOML file, then the environment, read once at start.  Nobody else reads either.

A bad value stops the start and names its key; no default replaces it in silence.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from actors.duration import DurationError, parse_duration
from actors.errors import ConfigError

DEFAULT_PORT: Final = 11434

Count = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
KvType = Literal["f16", "f32", "q8_0"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of the runtime.  Get one from `load_config`, which fills in `run_dir` and `models_dir`."""

    run_dir: str = ""  # sockets and locks, mode 0700; "": in $XDG_RUNTIME_DIR, else in /tmp
    models_dir: str = ""  # the model library, in Ollama's layout; "": ~/.ollama/models
    host: str = "127.0.0.1"  # where HTTP is served; "": everywhere
    port: Port = DEFAULT_PORT  # 0: any free one
    origins: tuple[str, ...] = ()  # web origins allowed beside this machine's own; "*" in one is a wildcard
    keep_alive_s: float = 300.0  # a model stays loaded after its last use; negative: for ever
    load_timeout_s: float = 300.0  # a load that makes no progress for so long is given up; 0 and less: never
    n_ctx: Count = 0  # positions of one sequence; 0: 4096, or what the model was trained for if less
    n_parallel: Annotated[int, msgspec.Meta(ge=1)] = 4  # sequences of one model at once
    n_batch: Annotated[int, msgspec.Meta(ge=1)] = 512  # inputs in one forward pass
    max_loaded: Count = 0  # models in memory; 0: three per device
    max_queue: Annotated[int, msgspec.Meta(ge=1)] = 512  # that wait for a load, or at a runner; more get 503
    kv_type: KvType = "f16"  # of keys and values; q8_0 is about half of f16
    n_thread: Count = 0  # 0: one per performance core
    sim_dir: str = ""  # the folder of a machine of simulated accelerators; "": there are none
    cpu_isa: str = ""  # forces the kernels' instruction set; "": the best there is
    max_body_bytes: Annotated[int, msgspec.Meta(ge=1)] = 64 << 20  # of an HTTP request
    group: str = ""  # members of this group may use the sockets too
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"

    def socket_address(self, actor: str) -> str:
        """Where the actor of that name listens, as `link.connect` takes it."""
        return f"unix:{self.run_dir}/{actor}.sock"


class HostAddress(msgspec.Struct, frozen=True):
    """What OLLAMA_HOST says."""

    scheme: str
    host: str  # no brackets; "": every interface
    port: int
    path: str  # "" or begins with "/"

    @property
    def url(self) -> str:
        """As a client reaches it: every interface is reached at this machine's own."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        shown = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{shown}:{self.port}{self.path}"


def parse_host(text: str, key: str = "OLLAMA_HOST") -> HostAddress:
    """OLLAMA_HOST's grammar: [scheme://][host][:port][/path]; no scheme: port 11434, http: 80, https: 443."""
    scheme, has_scheme, rest = text.partition("://")
    if not has_scheme:
        scheme, rest = "http", text
    if scheme not in ("http", "https"):
        raise _bad(key, text, "the scheme is http or https")
    default_port = {"http": 80, "https": 443}[scheme] if has_scheme else DEFAULT_PORT
    authority, _, path = rest.partition("/")
    host, port_text = _split_port(authority, key)
    port = default_port
    if port_text:
        if not (port_text.isascii() and port_text.isdigit() and int(port_text) <= 65535):
            raise _bad(key, text, "the port is a number up to 65535")
        port = int(port_text)
    if not authority:
        host = "127.0.0.1"
    return HostAddress(scheme, host, port, f"/{path}" if path else "")


def _split_port(authority: str, key: str) -> tuple[str, str]:
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _bad(key, authority, "an IPv6 address is written [::1] or [::1]:11434")
        return host, rest[1:]
    if authority.count(":") > 1:
        return authority, ""  # a bare IPv6 address
    host, _, port = authority.partition(":")
    return host, port


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The settings of file and environment; ConfigError names the file or variable, and the key.

    `path` None: $RUNTIME_CONFIG, else actor-runtime/config.toml in $XDG_CONFIG_HOME if there is one.
    """
    text_path = path or _named_file(environ)
    values = _read_file(text_path)
    values.update(_read_environ(environ))
    values["run_dir"] = str(values.get("run_dir") or "") or _default_run_dir(environ)
    models_dir = str(values.get("models_dir") or "") or "~/.ollama/models"
    values["models_dir"] = _expand(models_dir, environ)
    values["run_dir"] = _expand(str(values["run_dir"]), environ)
    if sim_dir := str(values.get("sim_dir") or ""):
        values["sim_dir"] = _expand(sim_dir, environ)
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as exc:
        raise ConfigError(
            f"a setting cannot be used: {exc}",
            where=str(text_path or "environment"),
            mend="mend it or leave it out",
        ) from exc


def _named_file(environ: Mapping[str, str]) -> Path | None:
    if named := _clean(environ.get("RUNTIME_CONFIG", "")):
        return Path(_expand(named, environ))
    folder = environ.get("XDG_CONFIG_HOME") or _expand("~/.config", environ)
    default = Path(folder) / "actor-runtime" / "config.toml"
    return default if default.is_file() else None


def _read_file(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        settings = msgspec.toml.decode(path.read_bytes(), type=dict[str, object])
    except OSError as exc:
        raise ConfigError(
            f"the configuration file {path} cannot be read: {exc.strerror}", where="RUNTIME_CONFIG"
        ) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}", where=str(path)) from exc
    for key in ("keep_alive_s", "load_timeout_s"):
        if isinstance(text := settings.get(key), str):
            settings[key] = _seconds(key, text)
    try:
        # alone, so that an error in the file is not taken for one in the environment
        msgspec.convert(settings, Config)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{path}: {exc}", where=str(path), mend="mend the key or leave it out") from exc
    return settings


def _read_environ(environ: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, (field, parse) in _VARIABLES.items():
        if text := _clean(environ.get(key, "")):
            values[field] = parse(key, text)
    if text := _clean(environ.get("OLLAMA_HOST", "")):
        address = parse_host(text)
        values["host"], values["port"] = address.host, address.port
    return values


def _clean(text: str) -> str:
    # clients' documentation quotes values, and people copy the quotes
    return text.strip().strip("\"'").strip()


def _default_run_dir(environ: Mapping[str, str]) -> str:
    if folder := environ.get("XDG_RUNTIME_DIR"):
        return f"{folder}/actor-runtime"
    return f"/tmp/actor-runtime-{os.getuid()}"


def _expand(path: str, environ: Mapping[str, str]) -> str:
    if path == "~" or path.startswith("~/"):
        path = (environ.get("HOME") or str(Path.home())) + path[1:]
    return str(Path(path).absolute())


def _bad(key: str, value: str, expected: str) -> ConfigError:
    return ConfigError(f'{key} is "{value}": {expected}', where=key, mend="mend it or unset it")


def _text(_key: str, value: str) -> str:
    return value


def _seconds(key: str, value: str) -> float:
    try:
        return parse_duration(value)
    except DurationError as exc:
        raise _bad(key, value, 'expected seconds or a span like "5m"') from exc


def _whole(low: int) -> Callable[[str, str], int]:
    def parse(key: str, value: str) -> int:
        if not (value.isascii() and value.isdigit() and int(value) >= low):
            raise _bad(key, value, f"expected a whole number, {low} or more")
        return int(value)

    return parse


def _one_of(*allowed: str) -> Callable[[str, str], str]:
    def parse(key: str, value: str) -> str:
        if value.lower() not in allowed:
            raise _bad(key, value, f"expected one of {', '.join(allowed)}")
        return value.lower()

    return parse


def _names(_key: str, value: str) -> tuple[str, ...]:
    return tuple(name for part in value.split(",") if (name := part.strip()))


def _debug_level(key: str, value: str) -> str:
    level = {
        "0": "info",
        "false": "info",
        "f": "info",
        "1": "debug",
        "true": "debug",
        "t": "debug",
        "2": "debug",
    }
    if value.lower() not in level:
        raise _bad(key, value, "expected 0, 1 or 2")
    return level[value.lower()]


_VARIABLES: Final[Mapping[str, tuple[str, Callable[[str, str], object]]]] = {
    # later lines win over earlier ones: our own names over Ollama's
    "OLLAMA_MODELS": ("models_dir", _text),
    "OLLAMA_KEEP_ALIVE": ("keep_alive_s", _seconds),
    "OLLAMA_LOAD_TIMEOUT": ("load_timeout_s", _seconds),
    "OLLAMA_MAX_QUEUE": ("max_queue", _whole(1)),
    "OLLAMA_MAX_LOADED_MODELS": ("max_loaded", _whole(0)),
    "OLLAMA_NUM_PARALLEL": ("n_parallel", _whole(1)),
    "OLLAMA_CONTEXT_LENGTH": ("n_ctx", _whole(0)),
    "OLLAMA_KV_CACHE_TYPE": ("kv_type", _one_of("f16", "f32", "q8_0")),
    "OLLAMA_ORIGINS": ("origins", _names),
    "OLLAMA_DEBUG": ("log_level", _debug_level),
    "RUNTIME_RUN_DIR": ("run_dir", _text),
    "RUNTIME_SIM": ("sim_dir", _text),
    "RUNTIME_CPU_ISA": ("cpu_isa", _text),
    "RUNTIME_GROUP": ("group", _text),
    "RUNTIME_LOG_LEVEL": ("log_level", _one_of("debug", "info", "warning", "error")),
    "RUNTIME_LOG_FORMAT": ("log_format", _one_of("text", "json")),
}
