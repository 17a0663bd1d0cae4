"""Who may connect."""

import os
import socket
import struct

import pytest
import trio

from actors import connection
from actors.connection import PeerPolicy
from actors.errors import RemoteProtocolError


def pair() -> tuple[trio.socket.SocketType, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    return trio.socket.from_stdlib_socket(ours), theirs


def be_user(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    """Let the policy believe that we are that user, so that our own socket is a stranger's."""
    monkeypatch.setattr(connection.os, "getuid", lambda: uid)


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> trio.socket.SocketType:
    """A socket whose other end belongs to another user, 4242, of group 77."""

    class Stranger:
        def getsockopt(self, _level: int, option: int, _n: int) -> bytes:
            return (
                struct.pack("3i", 1, 4242, 77) if option == socket.SO_PEERCRED else struct.pack("2I", 77, 88)
            )

    be_user(monkeypatch, 1000)
    return Stranger()  # pyright: ignore[reportReturnType]  # the two methods of it that count


async def test_our_own_user_may_connect() -> None:
    ours, theirs = pair()
    with ours, theirs:
        PeerPolicy().check(ours)


async def test_root_may_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to be it")
    be_user(monkeypatch, 1000)
    ours, theirs = pair()
    with ours, theirs:
        PeerPolicy().check(ours)


def test_another_user_may_not(stranger: trio.socket.SocketType) -> None:
    with pytest.raises(
        RemoteProtocolError, match="process 1 of user 4242 may not talk to the runtime of user 1000"
    ):
        PeerPolicy().check(stranger)


@pytest.mark.parametrize("gid", [77, 88])
def test_members_of_an_allowed_group_may(stranger: trio.socket.SocketType, gid: int) -> None:
    PeerPolicy(frozenset((gid,))).check(stranger)


def test_members_of_other_groups_may_not(stranger: trio.socket.SocketType) -> None:
    with pytest.raises(RemoteProtocolError):
        PeerPolicy(frozenset((99,))).check(stranger)
