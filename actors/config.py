"""Settings: a TOML file, then the environment, read once at start.  Nobody else reads either.

What wins, from the weakest: the file, Ollama's variables, our own RUNTIME_* variables, and the flags of
`runtime up`, which reach the actors as variables.  A bad value stops the start and names its key and where it
was found; no default replaces it in silence.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from actors.errors import ConfigError
from actors.settings import (
    DEFAULT_PORT,
    NO_EFFECT,
    SETTINGS,
    HostAddress,
    clean,
    n_bytes,
    seconds,
    some_bytes,
    some_seconds,
)
from actors.settings import parse_host as parse_host

Count = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
KvType = Literal["f16", "f32", "q8_0"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
Library = Literal["", "cpu", "cuda", "rocm", "sim"]

WITH_UNITS = (seconds, some_seconds, n_bytes, some_bytes)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of the runtime.  Get one from `load_config`, which fills in `run_dir` and `models_dir`."""

    run_dir: str = ""  # sockets and locks, mode 0700; "": in $XDG_RUNTIME_DIR, else in /tmp
    models_dir: str = ""  # the model library, in Ollama's layout; "": ~/.ollama/models
    host: str = "127.0.0.1"  # where HTTP is served; "": everywhere
    port: Port = DEFAULT_PORT  # 0: any free one
    origins: tuple[str, ...] = ()  # web origins allowed beside this machine's own; "*" in one is a wildcard
    keep_alive_s: float = 300.0  # a model stays loaded after its last use; negative: for ever
    load_timeout_s: float = 300.0  # a load that makes no progress for so long is given up; 0 and less: never
    n_ctx: Count = 0  # positions of one sequence; 0: the most that costs no speed, 4096 at least
    n_parallel: Annotated[int, msgspec.Meta(ge=1)] = 4  # sequences of one model at once
    n_batch: Annotated[int, msgspec.Meta(ge=1)] = 512  # inputs in one forward pass
    # inputs of a batch from which on a GPU computes layers of the host, whose weights are streamed to it;
    # 0: as measured at each load; more than n_batch: never
    stream_from: Count = 0
    max_loaded: Count = 0  # models in memory; 0: three per device
    max_queue: Annotated[int, msgspec.Meta(ge=1)] = 512  # that wait for a load, or at a runner; more get 503
    truncate: bool = True  # leave out of a prompt what does not fit; False: answer 400 with the numbers
    max_repetition: Count = 1024  # tokens of one group over and over after which an answer ends; 0: never
    kv_type: KvType = "f16"  # of keys and values; q8_0 is about half of f16
    gpu_overhead_bytes: Count = 0  # kept free on every GPU, besides what the layout keeps anyway
    sched_spread: bool = False  # spread every model over all GPUs instead of over as few as suffice
    library: Library = ""  # the one library whose devices are used beside the host; "": all
    probe_timeout_s: float = 30.0  # a probe that has not answered by then is ended
    sim_dir: str = ""  # folder of a simulated machine; "": there are no simulated devices
    n_thread: Count = 0  # 0: one per performance core
    cpu_isa: str = ""  # forces the kernels' instruction set; "": the best there is
    max_body_bytes: Annotated[int, msgspec.Meta(ge=1)] = 64 << 20  # of an HTTP request
    group: str = ""  # members of this group may use the sockets too
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"

    def socket_address(self, actor: str) -> str:
        """Where the actor of that name listens, as `link.connect` takes it."""
        return f"unix:{self.run_dir}/{actor}.sock"


class Found(NamedTuple):
    """A setting's value, and where it was found: "RUNTIME_N_CTX or --n-ctx", "/etc/config.toml: n_ctx"."""

    value: object
    place: str


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The settings of file and environment; ConfigError names the file or variable, and the key.

    `path` None: $RUNTIME_CONFIG, else actor-runtime/config.toml in $XDG_CONFIG_HOME if there is one.
    """
    values = {key: found.value for key, found in _find(path, environ).items()}
    values["run_dir"] = str(values.get("run_dir") or "") or _default_run_dir(environ)
    values["models_dir"] = str(values.get("models_dir") or "") or "~/.ollama/models"
    for key in ("run_dir", "models_dir", "sim_dir"):
        if folder := values.get(key):
            values[key] = _expand(str(folder), environ)
    return msgspec.convert(values, Config)


def traced(fault: ConfigError, environ: Mapping[str, str]) -> ConfigError:
    """The fault of a setting (`where` is its key) that turned out later, with the place of the setting."""
    found = _find(None, environ).get(fault.where)
    if found is None:
        return fault
    return ConfigError(f"{fault.message} ({found.place})", where=fault.where, mend=fault.mend)


def http_address(config: Config, environ: Mapping[str, str]) -> HostAddress:
    """Where a client finds the runtime; scheme and path are in the variables only."""
    for variable in ("RUNTIME_HOST", "OLLAMA_HOST"):
        if text := clean(environ.get(variable, "")):
            return parse_host(text, variable)
    return HostAddress("http", config.host, config.port, "")


def idle_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that are set and decide nothing, each with the reason: Ollama's, and ours nobody knows."""
    known = {setting.variable for setting in SETTINGS} | {"RUNTIME_CONFIG", "RUNTIME_LIFELINE_FD"}
    ours = sorted(key for key in environ if key.startswith("RUNTIME_") and key not in known)
    return {key: why for key, why in NO_EFFECT.items() if key in environ} | dict.fromkeys(
        ours, "no setting has this name"
    )


def _named_file(environ: Mapping[str, str]) -> Path | None:
    if named := clean(environ.get("RUNTIME_CONFIG", "")):
        return Path(_expand(named, environ))
    folder = environ.get("XDG_CONFIG_HOME") or _expand("~/.config", environ)
    default = Path(folder) / "actor-runtime" / "config.toml"
    return default if default.is_file() else None


def _find(path: Path | None, environ: Mapping[str, str]) -> dict[str, Found]:
    """Every setting that somebody made, by key, each checked by itself."""
    found = {**_read_file(path or _named_file(environ)), **dict(_read_environ(environ))}
    for key, (value, place) in found.items():
        try:
            msgspec.convert({key: value}, Config)
        except msgspec.ValidationError as exc:
            raise ConfigError(f"{place}: {exc}", where=key, mend="mend it or leave it out") from exc
    return found


def _read_file(path: Path | None) -> dict[str, Found]:
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
    return {key: _in_file(key, value, f"{path}: {key}") for key, value in settings.items()}


def _in_file(key: str, value: object, place: str) -> Found:
    """Spans and sizes may be texts with a unit in the file, too; a number must be one that can be used."""
    for setting in SETTINGS:
        if setting.key == key and setting.parse in WITH_UNITS and type(value) in (str, int, float):
            value = setting.parse(place, str(value))
    return Found(value, place)


def _read_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, Found]]:
    for setting in SETTINGS:
        if text := clean(environ.get(setting.variable, "")):
            # a flag reaches the actors as our variable
            place = f"{setting.variable} or {setting.flag}"
            value = setting.parse(setting.variable, text)
        elif setting.ollama and (text := clean(environ.get(setting.ollama, ""))):
            place = setting.ollama
            value = (setting.parse_ollama or setting.parse)(setting.ollama, text)
        else:
            continue
        if isinstance(value, HostAddress):
            yield "host", Found(value.host, place)
            yield "port", Found(value.port, place)
        else:
            yield setting.key, Found(value, place)


def _default_run_dir(environ: Mapping[str, str]) -> str:
    if folder := environ.get("XDG_RUNTIME_DIR"):
        return f"{folder}/actor-runtime"
    return f"/tmp/actor-runtime-{os.getuid()}"


def _expand(path: str, environ: Mapping[str, str]) -> str:
    if path == "~" or path.startswith("~/"):
        path = (environ.get("HOME") or str(Path.home())) + path[1:]
    return str(Path(path).absolute())
