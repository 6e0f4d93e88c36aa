"""The peers: everything that delivers, ours and others', and how each is started.

A peer in Python is an *adapter*, driven by `benchmarks.drive` in a process of its own; a mail server is a *server*,
started by `benchmarks.load` in processes of its own; any other is a command. The modules here that import a peer's
library are imported in those processes only.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.build import UnavailableError, compiled, go_program
from benchmarks.verify import Added
from benchmarks.workload import Workload

__all__ = ["PEERS", "Peer"]

#: Makes the command that does a workload in the maildirs below a directory; the last is where programs are compiled.
Command = Callable[[Workload, Path, Path], list[str]]


@dataclass(frozen=True, slots=True)
class Peer:
    """Something that delivers.

    Attributes:
        name: short, for the command line.
        title: for the report.
        syncs: what it syncs before a message counts as done; None if that is as the workload asks.
        adapter: ``module:class`` below `benchmarks.peers`, for one in Python.
        server: likewise, for a mail server.
        command: for one that is neither.
        program: what must be installed for it, or None.
        adds: where it adds header lines to the bytes as given, if it does.
        stores: whether it stores anything.

    """

    name: str
    title: str
    syncs: str | None = None
    adapter: str | None = None
    server: str | None = None
    command: Command | None = None
    program: str | None = None
    adds: Added = "nowhere"
    stores: bool = True

    @property
    def works(self) -> bool:
        """Whether its rate means anything."""
        return self.stores or self.server is not None

    def start(self, workload: Workload, root: Path, work: Path, python: str | None = None) -> list[str]:
        """Return the command for *workload* in *root*; raise `UnavailableError` if this machine cannot run it."""
        if self.program is not None and shutil.which(self.program) is None:
            raise UnavailableError(f"{self.program} is not installed")
        if self.command is not None:
            return self.command(workload, root, work)
        module = [python or sys.executable, "-m", f"benchmarks.{'drive' if self.server is None else 'load'}"]
        programs = [] if self.server is None else [str(compiled("smtpload.c", work))]
        return [*module, self.name, workload.to_json(), str(root), *programs]

    def syncs_for(self, workload: Workload) -> str:
        """Return what is synced in *workload*."""
        return self.syncs or {"full": "file + directory", "file": "file", "none": "nothing"}[workload.durability]


def floor_command(sync: str | None = None, *, threads: int = 32, batch: int = 64, writeback: bool = True) -> Command:
    """Return how to start floor.c: batches of at most *batch* messages, *threads* syncs side by side."""

    def command(workload: Workload, root: Path, work: Path) -> list[str]:
        together = min(batch, workload.in_flight)
        options = {
            "messages": workload.messages,
            "seconds": workload.seconds,
            "warmup": workload.warmup,
            "size": workload.size,
            "maildirs": workload.maildirs,
            "batch": together,
            "threads": min(threads, together),
            "sync": sync or workload.durability,
            "stream": int(workload.stream),
            "writeback": int(writeback),
        }
        program = compiled("floor.c", work)
        return [str(program), str(root), *(f"{name}={value}" for name, value in options.items())]

    return command


def go_command(workload: Workload, root: Path, work: Path) -> list[str]:
    """Return how to start the Go program."""
    numbers = (workload.messages, workload.seconds, workload.warmup, workload.size, workload.in_flight)
    return [str(go_program(work)), str(root), *map(str, numbers)]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("ours", "maildir_async", adapter="ours:Ours"),
        Peer("ours-folders", "maildir_async, into folders of one maildir", adapter="ours:Folders"),
        Peer("ours-quota", "maildir_async, with a quota", adapter="ours:WithQuota"),
        Peer("ours-syncfs", "maildir_async, syncfs=True", "file system + directory", "ours:Syncfs"),
        Peer("ours-helper", "maildir_async, helper_process=True", adapter="ours:Helper"),
        Peer("floor", "C, at most 64 a batch, 32 syncs side by side", command=floor_command()),
        Peer(
            "floor-syncfs", "C, at most 64 a batch, syncfs", "file system + directory", command=floor_command("syncfs")
        ),
        Peer(
            "floor-no-writeback",
            "C, the same without starting writeback first",
            command=floor_command(writeback=False),
        ),
        Peer("raw", "os calls in a plain loop, no asyncio", adapter="raw:Raw"),
        Peer("one-hop", "asyncio.to_thread around os calls", adapter="raw:OneHop"),
        Peer("stdlib-threads", "mailbox.Maildir.add in asyncio.to_thread", "file", "stdlib:InThreads"),
        Peer("stdlib-loop", "mailbox.Maildir.add on the loop", "file", "stdlib:OnTheLoop"),
        Peer("aiofiles", "naive aiofiles", adapter="naive:Aiofiles"),
        Peer("anyio", "naive anyio", adapter="naive:Anyio"),
        Peer("twisted", "Twisted MaildirMailbox.appendMessage", "nothing", "twisted:Twisted"),
        Peer("aiosmtpd", "aiosmtpd Mailbox handler, handle_DATA", "file", "aiosmtpd:Handler", adds="anywhere"),
        Peer("mdeliver", "mblaze mdeliver, a process each", "file", "mdeliver:Mdeliver", program="mdeliver"),
        Peer(
            "dovecot",
            "Dovecot LMTP, a connection per delivery in flight",
            "file + directory + index",
            "dovecot:Lmtp",
            program="dovecot",
            adds="in front",
        ),
        Peer("go-maildir", "go-maildir, goroutines", "nothing", command=go_command),
        Peer("nothing", "nothing: the loop alone", "nothing", "nothing:Nothing", stores=False),
        Peer("smtp", "StreamingSMTP, MaildirHandler", server="servers:Streaming", adds="in front"),
        Peer(
            "smtp-one-by-one",
            "StreamingSMTP, MaildirHandler, no PIPELINING",
            server="servers:StreamingOneByOne",
            adds="in front",
        ),
        Peer("smtp-stock", "aiosmtpd, MaildirHandler", server="servers:Stock", adds="in front"),
        Peer("smtp-mailbox", "aiosmtpd, its Mailbox handler", "file", server="servers:Mailbox", adds="anywhere"),
        Peer("smtp-sink", "aiosmtpd, discards: its protocol alone", "nothing", server="servers:Sink", stores=False),
        Peer("smtp-streaming-sink", "StreamingSMTP, discards", "nothing", server="servers:StreamingSink", stores=False),
        Peer("lmtp", "maildir-async serve --lmtp --workers 2", server="servers:Daemon", adds="in front"),
        Peer(
            "lmtp-dovecot",
            "Dovecot LMTP",
            "file + directory + index",
            server="servers:DovecotLmtp",
            program="dovecot",
            adds="in front",
        ),
    )
}
