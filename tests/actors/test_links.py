"""The gateway's connections: shared while they are open, forgotten when they never were."""

from pathlib import Path

import pytest
import trio

from actors.errors import PeerGone
from actors.gateway.links import Links


async def test_a_connection_whose_only_user_left_before_it_was_open_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "s"
    address = f"unix:{path}"
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen(1)  # and nobody accepts
    async with trio.open_nursery() as nursery:
        links = Links(nursery, "test")
        with trio.move_on_after(0.05) as patience:
            async with links.use(address):
                raise AssertionError("nobody greeted")
        assert patience.cancelled_caught
        assert not links._shared  # pyright: ignore[reportPrivateUsage]
        listener.close()
        path.unlink()
        with pytest.raises(PeerGone, match="nobody listens"):  # it is tried anew
            async with links.use(address):
                pass
        nursery.cancel_scope.cancel()
