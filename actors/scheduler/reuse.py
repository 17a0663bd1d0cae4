"""Whether a loaded model serves a request as it is, or must be loaded anew for its options."""

from actors.protocol import LoadOptions, MemoryReport
from actors.scheduler.context import N_CTX_SHORT


def serves(
    options: LoadOptions, report: MemoryReport | None, wanted: LoadOptions, defaults: LoadOptions
) -> bool:
    """Whether a model loaded with `options` serves a request for `wanted`.

    A field that the request leaves open is content with anything; one that the load left open has the
    default.  What was cut to what the model or the machine has compares as it was cut: `report` says what
    became of the options, and is None while that is not known.
    A context is a limit of the request, so one as long at least serves it; and the one left open is content
    with the default: in a shorter one, which somebody else asked for, prompts would be cut that nobody meant
    to be cut.
    """
    return (
        _has_context(options, report, wanted.n_ctx, defaults.n_ctx)
        and _has_layers(options, report, wanted.n_gpu)
        and _has_batch(options, report, wanted, defaults)
        and wanted.n_thread in (0, options.n_thread or defaults.n_thread)
        and _has_sequences(options, report, wanted, defaults)
        and wanted.kv_type in ("", options.kv_type or defaults.kv_type)
    )


def _has_context(
    options: LoadOptions, report: MemoryReport | None, wanted_n_ctx: int, default_n_ctx: int
) -> bool:
    n_ctx = wanted_n_ctx or default_n_ctx or N_CTX_SHORT
    if report is None:
        return wanted_n_ctx == options.n_ctx or options.n_ctx >= n_ctx
    if report.n_ctx_train:
        n_ctx = min(n_ctx, report.n_ctx_train)
    return report.n_ctx >= n_ctx


def _has_layers(options: LoadOptions, report: MemoryReport | None, wanted_n_gpu: int) -> bool:
    """As many as fit is content with any number; all layers is all of them, however many more were asked."""
    if wanted_n_gpu < 0 or options.n_gpu < 0 or report is None:
        return wanted_n_gpu < 0 or wanted_n_gpu == options.n_gpu
    n_layers = report.n_layer + 1
    return min(wanted_n_gpu, n_layers) == min(options.n_gpu, n_layers)


def _has_batch(
    options: LoadOptions, report: MemoryReport | None, wanted: LoadOptions, defaults: LoadOptions
) -> bool:
    """No batch is larger than the context."""
    if wanted.n_batch in (0, options.n_batch or defaults.n_batch):
        return True
    return report is not None and min(wanted.n_batch, report.n_ctx) == report.n_batch == report.n_ctx


def _has_sequences(
    options: LoadOptions, report: MemoryReport | None, wanted: LoadOptions, defaults: LoadOptions
) -> bool:
    """Each sequence has an input in every batch, so no more run at once than a batch has inputs."""
    if wanted.n_parallel in (0, options.n_parallel or defaults.n_parallel):
        return True
    return report is not None and min(wanted.n_parallel, report.n_batch) == report.n_parallel
