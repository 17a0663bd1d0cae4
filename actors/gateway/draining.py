"""Taking what a client still sends although nobody wants it.

A server that closes a connection with unread data resets it, and the client may never see the answer.  And an
ASGI server whose queue of the request's parts is full waits for the application, also inside `send`.
"""

import trio
from starlette.types import Receive

DRAIN_S = 5.0
DRAIN_BYTES = 64 << 20


async def take_rest(receive: Receive) -> None:
    """Take the rest of a body, as far as DRAIN_S and DRAIN_BYTES allow; not to be called after its end."""
    n_bytes = 0
    with trio.move_on_after(DRAIN_S):
        while n_bytes <= DRAIN_BYTES:
            message = await receive()
            if not message.get("more_body", False):  # the last part, or the client hung up
                return
            n_bytes += len(message.get("body", b""))


async def wait_gone(receive: Receive) -> None:
    """Take and drop whatever comes until the exchange is over, or the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
