"""What goes wrong around the daemon while mail comes: a full disk, a maildir that vanishes or is closed, a crowd.

Cases as in `hostile`. Those of `STANDING` are for a daemon that makes no maildirs.
"""

import resource
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .clients import CRAMPED, GOOD, HEADER, HELLO, USER, Bench, Got, Talk
from .mail import MIB

#: More than the small disk has room for, and no more than the daemon takes.
LINES: Final = 100_000
LARGE: Final = HEADER + b"fifteen octets\r\n" * LINES + b".\r\n"

FULL: Final = "452 4.3.1 "
GONE: Final = "451 4.3.5 "
STORED: Final = "250 2.0.0 "

IDLE: Final = 1000


@contextmanager
def filled(disk: Path) -> Generator[None]:
    """Have *disk* full for a while: not a byte has room."""
    path = disk / "filler"
    try:
        with open(path, "wb", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue
        yield
    finally:
        path.unlink(missing_ok=True)


def and_then(bench: Bench, talk: Talk, user: str) -> None:
    """See that the next message in the same session is stored, now that all is well."""
    talk.ask("RSET", "250 2.0.0")
    talk.mail(user)
    talk.message(GOOD, STORED)
    talk.ask("QUIT", "221 2.0.0")


def full_disk(bench: Bench) -> Got:
    bench.make(CRAMPED)
    talk = bench.begun(CRAMPED)
    with filled(bench.maildir(CRAMPED).parents[1]):
        talk.message(GOOD, FULL)
        bench.nothing_in_tmp()
    and_then(bench, talk, CRAMPED)
    return HELLO


def disk_that_fills_in_the_message(bench: Bench) -> Got:
    bench.make(CRAMPED)
    talk = bench.data(CRAMPED)
    talk.send(LARGE)
    talk.expect(FULL)
    bench.nothing_in_tmp()
    and_then(bench, talk, CRAMPED)
    return HELLO


def disk_that_fills_before_the_dot(bench: Bench) -> Got:
    """A short message, which is written when it is whole."""
    bench.make(CRAMPED)
    talk = bench.data(CRAMPED)
    talk.send(HEADER + b"hello\r\n")
    with filled(bench.maildir(CRAMPED).parents[1]):
        talk.send(b".\r\n")
        talk.expect(FULL)
        bench.nothing_in_tmp()
    and_then(bench, talk, CRAMPED)
    return HELLO


def no_room_for_the_size_announced(bench: Bench) -> Got:
    """It is known at RCPT, and the client is spared to send the message."""
    bench.make(CRAMPED)
    talk = bench.begun(options=f" SIZE={MIB + MIB // 2}")
    talk.ask(f"RCPT TO:<{CRAMPED}>", FULL)
    and_then(bench, talk, CRAMPED)
    return HELLO


def full_disk_of_one_of_two(bench: Bench) -> Got:
    """By LMTP each has a reply of his own. SMTP has one for both, and who has got the message gets it again."""
    bench.make(CRAMPED)
    bench.make(USER)
    talk = bench.data(USER, CRAMPED)
    with filled(bench.maildir(CRAMPED).parents[1]):  # not before: RCPT may see it, or may remember room of just now
        talk.send(GOOD)
        if bench.lmtp:
            talk.expect(STORED)
        talk.expect(FULL)
        bench.nothing_in_tmp()
    and_then(bench, talk, CRAMPED)
    return [HELLO, HELLO]


def vanish(bench: Bench) -> None:
    shutil.rmtree(bench.maildir(USER))


def back_again(bench: Bench, talk: Talk) -> Got:
    """See that nothing has been made in place of the maildir, and go on with one."""
    if bench.maildir(USER).exists():
        bench.fault("has made the maildir that vanished")
    bench.make(USER)
    and_then(bench, talk, USER)
    return HELLO


def vanished_after_rcpt(bench: Bench) -> Got:
    bench.make(USER)
    talk = bench.begun(USER)
    vanish(bench)
    talk.message(GOOD, GONE)
    return back_again(bench, talk)


def vanished_before_the_dot(bench: Bench) -> Got:
    bench.make(USER)
    talk = bench.data(USER)
    talk.send(HEADER + b"hello\r\n")
    vanish(bench)
    talk.send(b".\r\n")
    talk.expect(GONE)
    return back_again(bench, talk)


def vanished_in_the_message(bench: Bench) -> Got:
    """With the file in tmp/ that was being written to."""
    talk = half_sent(bench)
    vanish(bench)
    talk.send(LARGE[MIB:])
    talk.expect(GONE)
    return back_again(bench, talk)


def half_sent(bench: Bench) -> Talk:
    """Return a session that has sent the first MiB of LARGE, when some of it is in tmp/."""
    bench.make(USER)
    talk = bench.data(USER)
    talk.send(LARGE[:MIB])
    deadline = time.monotonic() + 10
    while not any(bench.maildir(USER).glob("tmp/*")):
        if time.monotonic() > deadline:
            bench.fault("has nothing in tmp/")
            break
        time.sleep(0.01)
    return talk


def closed_before_the_dot(bench: Bench) -> Got:
    """Somebody has changed the permissions of tmp/."""
    bench.make(USER)
    talk = bench.data(USER)
    with closed(bench.maildir(USER) / "tmp"):
        talk.send(GOOD)
        talk.expect(GONE)
    and_then(bench, talk, USER)
    return HELLO


def closed_in_the_message(bench: Bench) -> Got:
    """Somebody has changed the permissions of new/."""
    talk = half_sent(bench)
    with closed(bench.maildir(USER) / "new"):
        talk.send(LARGE[MIB:])
        talk.expect(GONE)
        bench.nothing_in_tmp()
    and_then(bench, talk, USER)
    return HELLO


@contextmanager
def closed(directory: Path) -> Generator[None]:
    """Let nobody write to a directory for a while."""
    directory.chmod(0o500)
    try:
        yield
    finally:
        directory.chmod(0o700)


def crowd(bench: Bench) -> Got:
    """A thousand connections that say nothing hold up nobody's mail, and are served when they do say something."""
    rounds = 10
    with descriptors():
        idle = [bench.talk() for _ in range(IDLE)]
        busy = [bench.talk() for _ in range(4)]
        for _ in range(rounds):
            for talk in busy:
                talk.mail(USER)
                talk.message(GOOD, STORED)
        for talk in idle:
            talk.ask("NOOP", "250 2.0.0")
            talk.close()
    return [HELLO] * rounds * len(busy)


@contextmanager
def descriptors() -> Generator[None]:
    """Have as many descriptors as root may have, for a while: each connection takes one here too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


CROWD: Final[dict[str, Callable[[Bench], Got]]] = {f"{IDLE} idle connections": crowd}

STANDING: Final[dict[str, Callable[[Bench], Got]]] = {
    "a maildir that vanishes after RCPT": vanished_after_rcpt,
    "a maildir that vanishes before the dot": vanished_before_the_dot,
    "a maildir that vanishes in the message": vanished_in_the_message,
    "permissions that change before the dot": closed_before_the_dot,
    "permissions that change in the message": closed_in_the_message,
}

SMALL_DISK: Final[dict[str, Callable[[Bench], Got]]] = {
    "a full disk": full_disk,
    "a disk that fills before the dot": disk_that_fills_before_the_dot,
    "a disk that fills in the message": disk_that_fills_in_the_message,
    "no room for the size announced": no_room_for_the_size_announced,
    "a full disk for one of two": full_disk_of_one_of_two,
}
