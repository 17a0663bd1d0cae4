"""Faults as data, and back; and faults out of the groups that nurseries raise."""

from actors.errors import RuntimeFault
from actors.protocol import ErrorInfo


def info_from(fault: RuntimeFault) -> ErrorInfo:
    """What crosses the socket of a fault."""
    return ErrorInfo(
        code=fault.code,
        message=fault.message,
        where=fault.where,
        mend=fault.mend,
        http_status=fault.http_status,
    )


def fault_from(info: ErrorInfo) -> RuntimeFault:
    """The peer's fault, of the same kind; a kind unknown here becomes a plain RuntimeFault."""
    kind = _kinds(RuntimeFault).get(info.code, RuntimeFault)
    return kind(info.message, where=info.where, mend=info.mend)


def _kinds(kind: type[RuntimeFault]) -> dict[str, type[RuntimeFault]]:
    kinds = {kind.code: kind}
    for narrower in kind.__subclasses__():
        # a subclass without a code of its own travels as its parent
        kinds = _kinds(narrower) | kinds
    return kinds


def sole_fault(group: BaseExceptionGroup[BaseException]) -> RuntimeFault | None:
    """The first fault of a group of nothing but faults, however deep; None when a bug is among them."""
    faults, rest = group.split(RuntimeFault)
    if faults is None or rest is not None:
        return None
    first: RuntimeFault | BaseExceptionGroup[RuntimeFault] = faults
    while isinstance(first, BaseExceptionGroup):
        # which of several faults is told matters little: one stream ends with one error
        first = first.exceptions[0]
    return first
