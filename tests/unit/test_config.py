"""Settings: where they come from, and what happens to bad ones."""

import os
from pathlib import Path

import pytest

from actors.config import Config, http_address, idle_variables, load_config, parse_host, traced
from actors.errors import ConfigError
from actors.settings import SETTINGS, HostAddress, Setting, n_bytes

TWO_VALUES = {
    "OLLAMA_HOST": ("a:1", "b:2"),
    "OLLAMA_MODELS": ("/a", "/b"),
    "OLLAMA_KEEP_ALIVE": ("1m", "2m"),
    "OLLAMA_LOAD_TIMEOUT": ("1m", "2m"),
    "OLLAMA_CONTEXT_LENGTH": ("1", "2"),
    "OLLAMA_NUM_PARALLEL": ("1", "2"),
    "OLLAMA_MAX_LOADED_MODELS": ("1", "2"),
    "OLLAMA_MAX_QUEUE": ("1", "2"),
    "OLLAMA_KV_CACHE_TYPE": ("f32", "q8_0"),
    "OLLAMA_GPU_OVERHEAD": ("1", "2"),
    "OLLAMA_SCHED_SPREAD": ("1", "0"),
    "OLLAMA_LLM_LIBRARY": ("cuda", "rocm_v6"),
    "OLLAMA_ORIGINS": ("a", "b"),
    "OLLAMA_DEBUG": ("error", "1"),
}
TEXTS_OF_DEFAULTS: dict[str, object] = {
    # what the help says in words
    **dict.fromkeys(("three per device", "one per core"), 0),
    **dict.fromkeys(("all", "the best there is", "a folder of the user's", "~/.ollama/models"), ""),
}


def load(**environ: str) -> Config:
    return load_config(None, {"HOME": "/home/u", **environ})


def test_without_settings_there_are_ollamas_defaults() -> None:
    config = load()
    assert (config.host, config.port, config.keep_alive_s) == ("127.0.0.1", 11434, 300.0)
    assert config.models_dir == "/home/u/.ollama/models"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", 11434),
        ("0.0.0.0", "0.0.0.0", 11434),
        ("example.com:1234", "example.com", 1234),
        (":1234", "", 1234),
        ("http://example.com", "example.com", 80),
        ("https://example.com", "example.com", 443),
        ("https://example.com:8443/ollama", "example.com", 8443),
        ("[::1]:1234", "::1", 1234),
        ("[::1]", "::1", 11434),
        ("::1", "::1", 11434),
        ("localhost", "localhost", 11434),
    ],
)
def test_host_follows_ollamas_grammar(text: str, host: str, port: int) -> None:
    config = load(OLLAMA_HOST=text)
    assert (config.host, config.port) == (host, port)


def test_a_path_in_the_host_is_kept_for_clients() -> None:
    assert parse_host("http://a.example:1/x/y").url == "http://a.example:1/x/y"


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:11434"), ("[::]", "http://[::1]:11434")]
)
def test_every_interface_is_reached_at_this_machines_own(host: str, url: str) -> None:
    assert parse_host(host).url == url


@pytest.mark.parametrize("bad", ["example.com:http", "h:65536", "ftp://x", "[::1", "h:-1"])
def test_a_bad_host_stops_the_start_and_names_the_variable(bad: str) -> None:
    with pytest.raises(ConfigError, match="OLLAMA_HOST"):
        load(OLLAMA_HOST=bad)


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("OLLAMA_MODELS", "/srv/models", "models_dir", "/srv/models"),
        ("OLLAMA_MODELS", "~/m", "models_dir", "/home/u/m"),
        ("OLLAMA_KEEP_ALIVE", "-1", "keep_alive_s", -1.0),
        ("OLLAMA_KEEP_ALIVE", "10m", "keep_alive_s", 600.0),
        ("OLLAMA_LOAD_TIMEOUT", "0", "load_timeout_s", 0.0),
        ("OLLAMA_MAX_QUEUE", "7", "max_queue", 7),
        ("OLLAMA_MAX_LOADED_MODELS", "0", "max_loaded", 0),
        ("OLLAMA_NUM_PARALLEL", "2", "n_parallel", 2),
        ("OLLAMA_CONTEXT_LENGTH", "8192", "n_ctx", 8192),
        ("OLLAMA_KV_CACHE_TYPE", "F32", "kv_type", "f32"),
        ("OLLAMA_KV_CACHE_TYPE", "q8_0", "kv_type", "q8_0"),
        ("OLLAMA_ORIGINS", "http://a, app://*", "origins", ("http://a", "app://*")),
        ("OLLAMA_DEBUG", "1", "log_level", "debug"),
        ("OLLAMA_DEBUG", "false", "log_level", "info"),
        ("RUNTIME_LOG_LEVEL", "warning", "log_level", "warning"),
        ("RUNTIME_CPU_ISA", ' "avx2" ', "cpu_isa", "avx2"),
        ("RUNTIME_SIM", "~/sim", "sim_dir", "/home/u/sim"),
        ("RUNTIME_RUN_DIR", "/run/x", "run_dir", "/run/x"),
        ("OLLAMA_GPU_OVERHEAD", "536870912", "gpu_overhead_bytes", 512 << 20),
        ("RUNTIME_GPU_OVERHEAD", "512MiB", "gpu_overhead_bytes", 512 << 20),
        ("OLLAMA_SCHED_SPREAD", "1", "sched_spread", True),
        ("OLLAMA_SCHED_SPREAD", "False", "sched_spread", False),
        ("OLLAMA_LLM_LIBRARY", "cuda_v12", "library", "cuda"),
        ("RUNTIME_LIBRARY", "cpu", "library", "cpu"),
        ("RUNTIME_PROBE_TIMEOUT", "1m", "probe_timeout_s", 60.0),
        ("RUNTIME_HOST", "box:1", "port", 1),
    ],
)
def test_each_variable_sets_its_field(variable: str, text: str, field: str, value: object) -> None:
    assert getattr(load(**{variable: text}), field) == value


@pytest.mark.parametrize(
    ("variable", "bad"),
    [
        ("OLLAMA_KEEP_ALIVE", "soon"),
        ("OLLAMA_MAX_QUEUE", "0"),
        ("OLLAMA_NUM_PARALLEL", "-1"),
        ("OLLAMA_CONTEXT_LENGTH", "8k"),
        ("OLLAMA_KV_CACHE_TYPE", "q4_0"),
        ("OLLAMA_DEBUG", "loud"),
        ("RUNTIME_LOG_LEVEL", "trace"),
        ("OLLAMA_GPU_OVERHEAD", "-1"),
        ("OLLAMA_GPU_OVERHEAD", "lots"),
        ("OLLAMA_SCHED_SPREAD", "flase"),
        ("OLLAMA_LLM_LIBRARY", "vulkan"),
        ("RUNTIME_PROBE_TIMEOUT", "0"),
        ("RUNTIME_MAX_BODY", "0"),
        ("RUNTIME_N_CTX", "99999999999999999999"),
    ],
)
def test_a_bad_variable_is_named_with_what_was_expected(variable: str, bad: str) -> None:
    with pytest.raises(ConfigError, match=f'{variable} is "{bad}": expected'):
        load(**{variable: bad})


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('port = 1\nn_ctx = 2\nkeep_alive_s = "1m"\n')
    config = load_config(file, {"OLLAMA_HOST": ":3", "HOME": "/"})
    assert (config.port, config.n_ctx, config.keep_alive_s) == (3, 2, 60.0)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("prot = 1", "prot"),
        ("keep_alive_s = nan", "keep_alive_s"),
        ("keep_alive_s = 'soon'", r"keep_alive_s is .soon"),
        ("gpu_overhead_bytes = 0.5", "gpu_overhead_bytes"),
        ("sched_spread = 1", r"\$\.sched_spread"),
        ("port = 'x'", r"\$\.port"),
        ("port = 99999", r"\$\.port"),
        ("port", "not TOML"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, text: str, names: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=names) as caught:
        load_config(file, {})
    assert "c.toml: " in caught.value.message or "is not TOML" in caught.value.message


@pytest.mark.parametrize(
    ("key", "text", "environ", "place"),
    [
        ("run_dir", "", {"RUNTIME_RUN_DIR": "/r"}, "RUNTIME_RUN_DIR or --run-dir"),
        ("run_dir", "run_dir = '/f'", {"RUNTIME_RUN_DIR": "/r"}, "RUNTIME_RUN_DIR or --run-dir"),
        ("run_dir", "run_dir = '/f'", {}, "c.toml: run_dir"),
        ("port", "port = 1", {}, "c.toml: port"),
        ("port", "port = 1", {"OLLAMA_HOST": ":2"}, "OLLAMA_HOST"),
        ("host", "", {"OLLAMA_HOST": ":2", "RUNTIME_HOST": ":3"}, "RUNTIME_HOST or --host"),
    ],
)
def test_a_setting_that_proves_wrong_later_is_named_with_its_place(
    tmp_path: Path, key: str, text: str, environ: dict[str, str], place: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    fault = traced(ConfigError("it is taken", where=key), {"RUNTIME_CONFIG": str(file), **environ})
    assert fault.message.startswith("it is taken (")
    assert fault.message.endswith(f"{place})")


def test_a_setting_that_nobody_made_has_no_place() -> None:
    assert traced(ConfigError("it is taken", where="port"), {}).message == "it is taken"


def test_a_named_file_has_to_exist() -> None:
    with pytest.raises(ConfigError, match=r"/nowhere/c\.toml"):
        load(RUNTIME_CONFIG="/nowhere/c.toml")


def test_the_users_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "actor-runtime").mkdir()
    (tmp_path / "actor-runtime" / "config.toml").write_text("max_queue = 9\n")
    assert load(XDG_CONFIG_HOME=str(tmp_path)).max_queue == 9


def test_sockets_are_in_the_users_runtime_directory() -> None:
    config = load(XDG_RUNTIME_DIR="/run/user/7")
    assert config.socket_address("scheduler") == "unix:/run/user/7/actor-runtime/scheduler.sock"


def test_without_a_runtime_directory_sockets_are_in_the_users_own_place() -> None:
    assert load().run_dir == f"/tmp/actor-runtime-{os.getuid()}"


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting.ollama])
def test_our_own_variable_wins_over_ollamas(setting: Setting) -> None:
    ours, theirs = TWO_VALUES[setting.ollama]
    alone = load(**{setting.variable: ours})
    assert alone != load(**{setting.ollama: theirs})
    assert load(**{setting.variable: ours, setting.ollama: theirs}) == alone


def test_every_key_but_the_port_has_a_variable() -> None:
    assert {setting.key for setting in SETTINGS} == set(Config.__struct_fields__) - {"port"}


def test_a_bad_fall_back_does_no_harm_where_our_own_variable_is_set() -> None:
    assert load(RUNTIME_N_CTX="7", OLLAMA_CONTEXT_LENGTH="8k").n_ctx == 7


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_default_in_the_help_is_the_default(setting: Setting) -> None:
    parsed = TEXTS_OF_DEFAULTS.get(setting.default)
    if setting.default in ("what fits", "none"):
        parsed = type(getattr(Config(), setting.key))()
    elif parsed is None:
        parsed = setting.parse("default", setting.default)
    if isinstance(parsed, HostAddress):
        assert (parsed.host, parsed.port) == (Config().host, Config().port)
    else:
        assert parsed == getattr(Config(), setting.key)


def test_spans_and_sizes_in_the_file_may_have_units(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('load_timeout_s = "2m"\nprobe_timeout_s = 5\nmax_body_bytes = "1 GiB"\n')
    config = load_config(file, {"HOME": "/"})
    assert (config.load_timeout_s, config.probe_timeout_s, config.max_body_bytes) == (120, 5, 1 << 30)


@pytest.mark.parametrize("text", ["", "1.5GiB", "-1", "1 TiB", "99999999999GiB", "１"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected bytes"):
        n_bytes("X", text)


def test_clients_look_where_the_variables_say() -> None:
    both = {"RUNTIME_HOST": "box:1", "OLLAMA_HOST": "https://other"}
    assert http_address(load(**both), both).url == "http://box:1"
    theirs = {"OLLAMA_HOST": "https://other/x"}
    assert http_address(load(**theirs), theirs).url == "https://other:443/x"
    assert http_address(Config(port=5), {}).url == "http://127.0.0.1:5"


def test_variables_that_decide_nothing_are_named_with_the_reason() -> None:
    idle = idle_variables({"OLLAMA_VULKAN": "1", "RUNTIME_N_CTX": "1", "RUNTIME_NCTX": "1", "PATH": ""})
    assert idle == {
        "OLLAMA_VULKAN": "there is no Vulkan backend",
        "RUNTIME_NCTX": "no setting has this name",
    }
