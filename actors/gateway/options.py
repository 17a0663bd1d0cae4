"""From `options`, PARAMETERs and keep_alive to what the scheduler and the runner are asked.

A request's option comes before the model's PARAMETER, and that before the default.  Wrong types are refused
by name; unknown and retired names are logged and ignored, as Ollama does.
"""

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from actors.duration import parse_duration
from actors.errors import RequestError
from actors.gateway.fields import Fields
from actors.options import DEPRECATED, OPTIONS, OptionValue, check_option
from actors.protocol import LoadOptions, Sampling

log = logging.getLogger(__name__)

# known, but nothing here depends on them: weights are always mapped, there is no draft model, and the layout
# is the scheduler's
WITHOUT_EFFECT = frozenset(("use_mmap", "draft_num_predict", "main_gpu"))
SEED_BITS = 63
MAX_STOP = 64  # each is looked for in every piece of text
DEFAULT_N_KEEP = 4


@dataclass(frozen=True, slots=True)
class Options:
    """What a generation runs with."""

    load: LoadOptions
    sampling: Sampling  # its seed is definite, so that another runner can go on exactly
    n_predict: int = -1
    n_keep: int = DEFAULT_N_KEEP
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


def read_options(
    request: Mapping[str, object],
    params: Mapping[str, object],
    defaults: Mapping[str, object] | None = None,
) -> Options:
    """Join the request's options over the model's params over `defaults` over Ollama's own.

    RequestError `option "temperature" must be of type float32` and the like.
    """
    values: dict[str, OptionValue] = {}
    for source in (defaults or {}, params, request):
        values.update(_checked(source))
    load = LoadOptions(
        n_ctx=_count(values, "num_ctx"),
        n_batch=_count(values, "num_batch"),
        n_gpu=max(-1, _int(values, "num_gpu", -1)),
        n_thread=_count(values, "num_thread"),
        n_parallel=_count(values, "num_parallel"),
    )
    return Options(
        load=load,
        sampling=_sampling(values),
        n_predict=max(-1, _int(values, "num_predict", -1)),
        n_keep=_int(values, "num_keep", DEFAULT_N_KEEP),
        stop=_stop(values),
        ignore_eos=cast("bool", values.get("ignore_eos", False)),
    )


def _sampling(values: Mapping[str, OptionValue]) -> Sampling:
    known = Sampling()
    seed = _int(values, "seed", -1)
    return Sampling(
        temperature=_float(values, "temperature", known.temperature),
        top_k=_int(values, "top_k", known.top_k),
        top_p=_float(values, "top_p", known.top_p),
        min_p=_float(values, "min_p", known.min_p),
        typical_p=_float(values, "typical_p", known.typical_p),
        repeat_last_n=_int(values, "repeat_last_n", known.repeat_last_n),
        repeat_penalty=_float(values, "repeat_penalty", known.repeat_penalty),
        presence_penalty=_float(values, "presence_penalty", known.presence_penalty),
        frequency_penalty=_float(values, "frequency_penalty", known.frequency_penalty),
        seed=seed if seed >= 0 else secrets.randbits(SEED_BITS),
    )


def _checked(source: Mapping[str, object]) -> dict[str, OptionValue]:
    checked: dict[str, OptionValue] = {}
    for name, value in source.items():
        if value is None:
            continue
        if name not in OPTIONS:
            what = "no longer has an effect" if name in DEPRECATED else "is unknown"
            log.warning("option %r %s and is ignored", name[:80], what)
            continue
        if name in WITHOUT_EFFECT:
            log.warning("option %r has no effect in this runtime", name)
        checked[name] = check_option(name, value)
    return checked


def _stop(values: Mapping[str, OptionValue]) -> tuple[str, ...]:
    stop = cast("list[str]", values.get("stop", []))
    if len(stop) > MAX_STOP:
        raise RequestError(
            f'option "stop" has {len(stop)} strings, at most {MAX_STOP} are looked for', where="options"
        )
    return tuple(text for text in stop if text)  # an empty string would stop everything at once


def _int(values: Mapping[str, OptionValue], name: str, default: int) -> int:
    return cast("int", values.get(name, default))


def _float(values: Mapping[str, OptionValue], name: str, default: float) -> float:
    return cast("float", values.get(name, default))


def _count(values: Mapping[str, OptionValue], name: str) -> int:
    value = _int(values, name, 0)
    if value < 0:
        raise RequestError(f'option "{name}" must not be negative, it is {value}', where="options")
    return value


def read_keep_alive(fields: Fields) -> float | None:
    """Seconds a model stays after its last user; negative: for ever; None: what the server is set to.

    Numbers are seconds; strings are durations ("1h30m", "-1m") or plain numbers ("300", "-1").
    """
    value = fields.raw("keep_alive")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        fields.refuse("keep_alive", value, "Duration")
    try:
        return parse_duration(value)
    except OverflowError as exc:
        raise RequestError("keep_alive is too large", where="body.keep_alive") from exc
