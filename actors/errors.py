"""What can go wrong that we foresee; a bug of ours stays a built-in exception.

    RuntimeFault
    ├── ConfigError              500  a setting that cannot be used; stops the start
    ├── ProtocolError            500  the socket protocol was broken
    │   ├── LocalProtocolError   500  ... by us
    │   └── RemoteProtocolError  500  ... by the peer
    ├── ModelError               400  a model file or a model's description is wrong
    │   ├── ModelNotFound        404  no model of that name
    │   └── Unsupported          400  sound, but this runtime does not implement it
    ├── RequestError             400  a request that asks for something impossible or malformed
    ├── CapacityError            500  the memory or the devices do not suffice
    │   └── Busy                 503  others use what this needs; come back later
    │       └── QueueFull        503  too many wait already
    └── PeerGone                 500  the process at the other end went away

Each carries what happened, where, and how to mend it, and knows the HTTP status that a gateway answers with.
"""

from typing import ClassVar


class RuntimeFault(Exception):
    """Base of every foreseen error: `message` says what, `where` names the place, `mend` how to put it right.

    `code` is the stable name of the kind, for machines; `http_status` is what the gateway answers;
    `retry_after_s` is when asking again may help, 0 where it does not help by itself.
    `str()` gives the message and, where there is one, the mend.
    """

    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "runtime_fault"
    retry_after_s: ClassVar[int] = 0

    def __init__(self, message: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}; {self.mend}" if self.mend else self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, where={self.where!r}, mend={self.mend!r})"

    def __reduce__(self) -> tuple[object, ...]:
        # the default would call the constructor with args alone, and lose where and mend
        return (_rebuild, (type(self), self.message, self.where, self.mend))


def _rebuild(kind: type[RuntimeFault], message: str, where: str, mend: str) -> RuntimeFault:
    return kind(message, where=where, mend=mend)


class ConfigError(RuntimeFault):
    """A setting that cannot be used; the message names the key."""

    code = "config"


class ProtocolError(RuntimeFault):
    """The socket protocol was broken."""

    code = "protocol"


class LocalProtocolError(ProtocolError):
    """We broke the protocol: our bug, caught before it left the process."""

    code = "local_protocol"


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; it loses its connection."""

    code = "remote_protocol"


class ModelError(RuntimeFault):
    """A model file, or what describes a model, is wrong."""

    http_status = 400
    code = "model"


class ModelNotFound(ModelError):
    """No model of that name or path."""

    http_status = 404
    code = "model_not_found"


class Unsupported(ModelError):
    """Sound, as far as we can tell, but this runtime does not implement it; the message names what."""

    code = "unsupported"


class RequestError(RuntimeFault):
    """A request that is malformed or asks for something impossible."""

    http_status = 400
    code = "request"


class CapacityError(RuntimeFault):
    """The memory or the devices do not suffice; the message has the numbers."""

    code = "capacity"


class Busy(CapacityError):
    """Others use what this needs; come back later."""

    http_status = 503
    code = "busy"
    retry_after_s = 30  # whoever was waited for in vain is at it for longer still


class QueueFull(Busy):
    """Too many requests wait already; come back later."""

    code = "queue_full"
    retry_after_s = 5  # a place in a queue is free at the end of the next answer or load


class PeerGone(RuntimeFault):
    """The process at the other end of a link went away."""

    code = "peer_gone"
