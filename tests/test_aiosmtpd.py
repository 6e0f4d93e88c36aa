"""A stock aiosmtpd server whose handler awaits append: stopped in the middle of deliveries, it leaves no litter."""

import contextlib
import smtplib
import socket
import threading
import time
from pathlib import Path
from typing import Any

from aiosmtpd.controller import UnixSocketController

from look import Look, chunks_of, descriptors
from maildir_async import GroupCommit, Maildir
from maildir_async.testing import Fault, FaultDisk

LONG = b"x" * 3_000_000


connections: list[socket.socket] = []


class Client(smtplib.SMTP):
    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        connection.connect(host)
        connections.append(connection)
        return connection


class Handler:
    def __init__(self, maildir: Maildir) -> None:
        self.maildir = maildir

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 aiosmtpd's name
        await self.maildir.append(chunks_of(LONG, 100_000)() if b"long" in envelope.content else envelope.content)
        return "250 OK"


def test_controller_stopped_in_the_middle_of_deliveries(tmp_path: Path) -> None:
    """`Controller.stop()` with deliveries hanging on the disk: when that goes on, tmp/ is empty and no mail is torn."""
    hanging = threading.Semaphore(0)
    release = threading.Event()

    def gate() -> None:
        hanging.release()
        assert release.wait(60)

    commit = GroupCommit()
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", disk=disk, commit=commit)
    address = str(tmp_path / "socket")
    controller = UnixSocketController(Handler(maildir), unix_socket=address)
    controller.start()

    def send(text: str) -> None:
        with Client(address, 25, timeout=60) as client:
            client.sendmail("a@example.org", ["b@example.org"], f"Subject: {text}\n\nbody\n")

    def send_in_vain(text: str) -> None:
        try:
            send(text)
        except (smtplib.SMTPException, OSError):
            refused.append(text)

    refused: list[str] = []
    send("first")
    assert len(Look(maildir.path).names("new")) == 1
    disk.faults.append(Fault("write", nth=0, path="m/tmp/", gate=gate))
    clients = [threading.Thread(target=send_in_vain, args=(text,)) for text in ("short", "long")]
    for client in clients:
        client.start()
    hanging.acquire()  # each hangs in its own thread: one in group commit, one in a stream's write
    hanging.acquire()
    stopping = threading.Thread(target=controller.stop)
    stopping.start()
    # Until Python 3.11 this ends with the disk still hanging; later ones have the server wait for its connections.
    stopping.join(0.5)
    for connection in connections[1:]:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    release.set()
    stopping.join()
    for client in clients:
        client.join()
    deadline = time.monotonic() + 30
    while descriptors(tmp_path):
        assert time.monotonic() < deadline, "descriptors stay open"
        time.sleep(0.005)
    assert commit.wait_idle(30)
    assert sorted(refused) == ["long", "short"]
    look = Look(maildir.path)
    look.assert_tmp_empty()
    assert all(b"body" in message or message == LONG for message in look.messages())
