"""How a worker accepts connections: without a daemon."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from maildir_async.daemon import acceptor
from maildir_async.daemon.acceptor import Acceptor
from maildir_async.daemon.board import Board
from maildir_async.daemon.log import Log
from maildir_async.daemon.sockets import Listener, UnixAddress, bind
from support import turns

pytestmark = pytest.mark.every_loop


@pytest.fixture
def listeners(tmp_path: Path) -> list[Listener]:
    """A socket, made before there is a loop, which that must not block."""
    return bind(UnixAddress(str(tmp_path / "socket")), 0o600)


def accepting(listeners: list[Listener], board: Board, take: Callable[[socket.socket], object]) -> Acceptor:
    """Return who accepts as worker 0, three connections at most."""

    def adopt(connection: socket.socket, _: int | None, __: Listener) -> None:
        take(connection)

    return Acceptor(listeners, adopt, board=board, slot=0, max_connections=3, turned_away=lambda: None, log=Log(2))


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(path))
    return client


async def test_who_has_more_steps_back(
    tmp_path: Path, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another worker has fewer connections the next is left to it; if all ends, who waits is told 421."""
    monkeypatch.setattr(acceptor, "YIELD_S", 3600)
    board, adopted = Board(2), list[socket.socket]()
    board.enter(1)
    worker = accepting(listeners, board, adopted.append)
    worker.start()
    with connected(tmp_path / "socket"), connected(tmp_path / "socket") as second:
        await turns()
        assert len(adopted) == worker.connections == board.connections == 1
        board.end()
        worker.stop()
        assert second.recv(100) == b"421 4.3.2 Service shutting down\r\n"
        assert second.recv(100) == b""
        assert not board.is_present(0)
    adopted[0].close()


async def test_who_waits_is_left_to_those_who_go_on(
    tmp_path: Path, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that ends alone leaves the queue to another, which serves who waits there."""
    monkeypatch.setattr(acceptor, "YIELD_S", 3600)
    board, adopted = Board(2), asyncio.Queue[socket.socket]()
    others = [Listener(listener.socket.dup()) for listener in listeners]
    board.enter(1)
    worker = accepting(listeners, board, lambda connection: connection.close())
    worker.start()
    with connected(tmp_path / "socket"), connected(tmp_path / "socket") as second:
        await turns()
        worker.stop()
        other = accepting(others, board, adopted.put_nowait)
        other.start()
        async with asyncio.timeout(10):
            connection = await adopted.get()
        connection.send(b"220 hello\r\n")
        connection.close()
        assert second.recv(100) == b"220 hello\r\n"
        other.stop()


async def test_a_connection_that_nobody_takes_is_taken_after_all(tmp_path: Path, listeners: list[Listener]) -> None:
    """A worker that has fewer connections, and does not come for another, holds nobody up for long."""
    board, adopted = Board(2), asyncio.Queue[socket.socket]()
    board.enter(1)
    worker = accepting(listeners, board, adopted.put_nowait)
    worker.start()
    with connected(tmp_path / "socket"), connected(tmp_path / "socket"):
        for _ in range(2):
            async with asyncio.timeout(10):
                (await adopted.get()).close()
        worker.stop()


async def test_the_limit_is_for_all_workers(tmp_path: Path, listeners: list[Listener]) -> None:
    """Connections of others count, those of a worker that is gone do not; one that has ended makes room."""
    board, adopted = Board(2), asyncio.Queue[socket.socket]()
    board.enter(1)
    board.tell(1, 2)
    worker = accepting(listeners, board, adopted.put_nowait)
    worker.start()
    loop = asyncio.get_running_loop()
    with connected(tmp_path / "socket"), connected(tmp_path / "socket") as second:
        (await adopted.get()).close()
        assert await loop.run_in_executor(None, second.recv, 100) == b"421 4.3.2 Too many connections\r\n"
        board.leave(1)
        with connected(tmp_path / "socket"):
            (await adopted.get()).close()
        assert worker.connections == 2
        assert worker.lost() == 1
        worker.stop()
