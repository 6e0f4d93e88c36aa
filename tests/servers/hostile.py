"""Clients that are up to no good, or broken, straight against the daemon: it answers what an administrator expects.

Each case talks to the daemon, and returns what the user has to have got by it.
"""

import socket
from collections.abc import Callable, Mapping
from typing import Final

from .checks import Verdict
from .clients import CLIMBERS, ENDS, GOOD, HEADER, HELLO, LIMIT, SMUGGLED, USER, Bench, Got
from .place import Place, can_mount
from .trouble import CROWD, SMALL_DISK, STANDING

MILLION: Final = 1_000_000

#: The end of the connection, and no reply.
NOTHING: Final = "$"


def a_good_message(bench: Bench) -> Got:
    said = bench.swaks("--to", USER, "--data", "Subject: hello\n\nhello\n.\n")
    bench.expect(said, r"^<-  250 2\.0\.0 ")
    return HELLO


def unknown_user(bench: Bench) -> Got:
    bench.expect(bench.swaks("--to", "ghost@a.test"), r"^<\*\* 550 5\.1\.1 ")
    bench.expect(bench.swaks("--to", "user@elsewhere.test"), r"^<\*\* 550 5\.1\.1 ")
    return None


def unknown_user_among_others(bench: Bench) -> Got:
    talk = bench.talk()
    talk.ask("MAIL FROM:<sender@a.test>", "250 2.1.0")
    talk.ask("RCPT TO:<ghost@a.test>", "550 5.1.1")
    talk.ask(f"RCPT TO:<{USER}>", "250 2.1.5")
    talk.ask("DATA", "354 ")
    talk.send(GOOD)
    talk.expect("250 2.0.0")
    talk.ask("NOOP", "250 2.0.0")  # and not a second reply
    talk.ask("QUIT", "221 2.0.0")
    return HELLO


def nobody_is_left(bench: Bench) -> Got:
    talk = bench.talk()
    talk.ask("MAIL FROM:<sender@a.test>", "250 2.1.0")
    talk.ask("RCPT TO:<ghost@a.test>", "550 5.1.1")
    talk.ask("DATA", "(503 5.5.1|554 5.5.1)")
    return None


def out_of_the_tree(bench: Bench) -> Got:
    talk = bench.talk()
    utf8 = " SMTPUTF8" if "SMTPUTF8" in talk.replies[-1] else ""
    talk.ask(f"MAIL FROM:<sender@a.test>{utf8}", "250 2.1.0")
    for recipient in CLIMBERS:
        talk.ask(f"RCPT TO:<{recipient}>", r"5(50|53|01) 5\.1\.[123]|501 5\.5\.4|500 5\.5\.2")
    talk.ask(f"RCPT TO:<{USER}>", "250 2.1.5")
    talk.ask("RSET", "250 2.0.0")
    talk.ask("QUIT", "221 2.0.0")
    return None


def smuggling(end: bytes) -> Callable[[Bench], Got]:
    def run(bench: Bench) -> Got:
        talk = bench.talk()
        talk.mail(USER)
        talk.ask("DATA", "354 ")
        talk.send(HEADER + b"hello" + end + SMUGGLED + b".\r\n")
        talk.expect("250 2.0.0|5")
        refused = talk.replies[-1].startswith("5")
        talk.ask("NOOP", "250 2.0.0")  # and not the reply to a second message
        return None if refused else _stored(b"hello" + end + SMUGGLED)

    return run


def _stored(wire: bytes) -> bytes:
    """Return what the daemon makes of it: no dots that were stuffed, LF."""
    wire = wire.replace(b"\r\n.", b"\r\n")
    return wire.replace(b"\r\n", b"\n")


def declared_too_large(bench: Bench) -> Got:
    talk = bench.talk()
    if f"SIZE {LIMIT}" not in talk.replies[-1]:
        bench.fault("does not announce SIZE")
    talk.ask(f"MAIL FROM:<sender@a.test> SIZE={LIMIT + 1}", "552 5.3.4")
    talk.ask(f"RCPT TO:<{USER}>", "503 5.5.1")
    return None


def too_large(bench: Bench) -> Got:
    talk = bench.data(USER)
    talk.send(HEADER + b"0123456789\r\n" * (LIMIT // 12 + 1) + b".\r\n")
    talk.expect("552 5.3.4")
    talk.mail(USER)  # the session goes on
    talk.ask("DATA", "354 ")
    talk.send(GOOD)
    talk.expect("250 2.0.0")
    return HELLO


def lies_about_its_size(bench: Bench) -> Got:
    talk = bench.data(USER, options=" SIZE=10")
    talk.send(HEADER + b"x" * 1000 + b"\r\n.\r\n")
    talk.expect("250 2.0.0")
    return b"x" * 1000 + b"\n"


def gone_in_the_message(bench: Bench) -> Got:
    talk = bench.data(USER)
    talk.send(HEADER + b"half of a line, and no en")
    talk.close()
    return after_that(bench)


def gone_before_the_last_dot_ends(bench: Bench) -> Got:
    talk = bench.data(USER)
    talk.send(HEADER + b"hello\r\n.\r")
    talk.close()
    return after_that(bench)


def gone_before_data(bench: Bench) -> Got:
    talk = bench.begun(USER)
    talk.close()
    return after_that(bench)


def after_that(bench: Bench) -> Got:
    """Send another message, for the daemon to have noticed that the client before is gone."""
    talk = bench.data(USER)
    talk.send(GOOD)
    talk.expect("250 2.0.0")
    talk.ask("QUIT", "221 2.0.0")
    return HELLO


def half_closed(bench: Bench) -> Got:
    talk = bench.data(USER)
    talk.send(GOOD)
    talk.connection.shutdown(socket.SHUT_WR)
    talk.expect("250 2.0.0")
    talk.expect(NOTHING)
    return HELLO


def half_closed_after_much(bench: Bench) -> Got:
    """What it has sent is on its way to the disk when it closes."""
    talk = bench.data(USER)
    talk.send(HEADER + b"x" * MILLION + b"\r\n.\r\n")
    talk.connection.shutdown(socket.SHUT_WR)
    talk.expect("250 2.0.0")
    talk.expect(NOTHING)
    return b"x" * MILLION + b"\n"


def half_closed_before_the_dot(bench: Bench) -> Got:
    """It would hear a reply, and there must be none that it could take for a success."""
    talk = bench.data(USER)
    talk.send(HEADER + b"hello\r\n")
    talk.connection.shutdown(socket.SHUT_WR)
    talk.expect(f"421 4|{NOTHING}")
    return after_that(bench)


def all_in_one_packet(bench: Bench) -> Got:
    talk = bench.talk()
    talk.send(b"MAIL FROM:<>\r\nRCPT TO:<%b>\r\nRCPT TO:<../x@a.test>\r\nDATA\r\n" % USER.encode())
    for pattern in ("250 2.1.0", "250 2.1.5", r"5\d\d 5\.", "354 "):
        talk.expect(pattern)
    talk.send(GOOD + b"NOOP\r\nQUIT\r\n")
    for pattern in ("250 2.0.0", "250 2.0.0", "221 2.0.0"):
        talk.expect(pattern)
    return HELLO


def wrong_order(bench: Bench) -> Got:
    talk = bench.talk()
    talk.ask("DATA", "503 5.5.1")
    talk.ask(f"RCPT TO:<{USER}>", "503 5.5.1")
    talk.mail(USER)
    talk.ask("MAIL FROM:<sender@a.test>", "503 5.5.1")
    return None


def wrong_words(bench: Bench) -> Got:
    talk = bench.talk()
    talk.ask("WHAT", "500 5.5.[12]")
    talk.ask("HELO client.test" if bench.lmtp else "LHLO client.test", "50[02] ")
    talk.ask("MAIL FROM:sender@a.test>", "501 5.(5.[24]|1.7)")
    talk.ask("MAIL FROM:<sender@a.test> NONSENSE=1", "555 5.5.4")
    talk.ask("MAIL FROM:<sender@a.test> SIZE=many", "501 5.5.4")
    talk.send(b"\xff\xfe\x00\r\n")
    talk.expect("500 5.5.2")
    talk.ask("NOOP", "250 2.0.0")
    return None


def long_command(bench: Bench) -> Got:
    talk = bench.talk()
    talk.ask("NOOP " + "x" * 10_000, "500 5.5.2")
    talk.ask("NOOP", "250 2.0.0")
    return None


def bare_line_ends_in_commands(bench: Bench) -> Got:
    """A bare LF ends a command that is refused for it, and a bare CR ends none. Each command has one reply."""
    talk = bench.talk()
    talk.send(b"NOOP\nMAIL FROM:<a@a.test>\r\n")
    talk.expect("500 5.5.2")
    talk.expect("250 2.1.0")
    talk.send(b"NOOP\rRCPT TO:<%b>\r\n" % USER.encode())
    talk.expect("[25]")
    talk.ask("DATA", "503 5.5.1")
    return None


def long_line(bench: Bench) -> Got:
    talk = bench.data(USER)
    talk.send(HEADER + b"x" * MILLION + b"\r\n.\r\n")
    talk.expect("250 2.0.0")
    return b"x" * MILLION + b"\n"


def dots(bench: Bench) -> Got:
    talk = bench.data(USER)
    talk.send(HEADER + b"..\r\n...\r\n..x\r\n\r\n.\r\n")
    talk.expect("250 2.0.0")
    return b".\n..\n.x\n\n"


def bdat(bench: Bench) -> Got:
    talk = bench.begun(USER)
    talk.send(b"BDAT %d\r\n%b" % (len(HEADER), HEADER))
    talk.expect("250 2.0.0")
    talk.send(b"BDAT 8 LAST\r\n.\r\n.\r\nx\n")
    talk.expect("250 2.0.0")
    return b".\n.\nx\n"


def bdat_too_large(bench: Bench) -> Got:
    talk = bench.begun(USER)
    talk.send(b"BDAT %d LAST\r\n" % (LIMIT + 1) + b"x" * (LIMIT + 1))
    talk.expect("552 5.3.4")
    talk.ask("NOOP", "250 2.0.0")
    return None


def bdat_gone(bench: Bench) -> Got:
    talk = bench.begun(USER)
    talk.send(b"BDAT 1000 LAST\r\n" + HEADER)
    talk.close()
    return after_that(bench)


def a_probe(bench: Bench) -> Got:
    """What Postfix's address verification does."""
    talk = bench.talk()
    for _ in range(3):
        talk.ask("MAIL FROM:<>", "250 2.1.0")
        talk.ask(f"RCPT TO:<{USER}>", "250 2.1.5")
        talk.ask("RSET", "250 2.0.0")
    talk.ask("VRFY " + USER, "25[02] 2")
    talk.ask("QUIT", "221 2.0.0")
    return None


def forged_trace(bench: Bench) -> Got:
    """A client that says hello with a header of its own."""
    talk = bench.talk()
    talk.ask(f"{'LHLO' if bench.lmtp else 'EHLO'} x\rX-Evil: yes\r(", "250|501")
    talk.ask("LHLO x)" if bench.lmtp else "EHLO x)", r"250|501")
    talk.ask('MAIL FROM:<"a b\\">"@a.test>', r"250|501|553")
    if not talk.replies[-1].startswith("250"):
        talk.ask("MAIL FROM:<>", "250")
    talk.ask(f"RCPT TO:<{USER}>", "250 2.1.5")
    talk.ask("DATA", "354 ")
    talk.send(GOOD)
    talk.expect("250 2.0.0")
    return HELLO


CASES: Final[dict[str, Callable[[Bench], Got]]] = {
    "a good message": a_good_message,
    "unknown user": unknown_user,
    "an unknown user among others": unknown_user_among_others,
    "nobody is left": nobody_is_left,
    "out of the tree": out_of_the_tree,
    **{f"smuggling with {end!r}": smuggling(end) for end in ENDS},
    "declared too large": declared_too_large,
    "too large": too_large,
    "lies about its size": lies_about_its_size,
    "gone in the message": gone_in_the_message,
    "gone before the last line end": gone_before_the_last_dot_ends,
    "gone before DATA": gone_before_data,
    "half-closed": half_closed,
    "half-closed after much": half_closed_after_much,
    "half-closed before the dot": half_closed_before_the_dot,
    "all in one packet": all_in_one_packet,
    "wrong order": wrong_order,
    "wrong words": wrong_words,
    "a long command": long_command,
    "bare line ends in commands": bare_line_ends_in_commands,
    "a long line": long_line,
    "dots": dots,
    "BDAT": bdat,
    "BDAT, too large": bdat_too_large,
    "BDAT, gone": bdat_gone,
    "a probe": a_probe,
    "a forged trace": forged_trace,
}


def hostile(place: Place, say: Callable[[str], None]) -> Verdict:
    """Run all cases against daemons that speak LMTP and SMTP; return what was found."""
    verdict = Verdict()
    small_disk = can_mount(place.path)
    if not small_disk:
        print("NOT TESTED WITH A FULL DISK: no right to mount one", flush=True)
    for protocol in ("lmtp", "smtp"):
        _run(Bench(place, protocol), CASES | CROWD, verdict, say)
        standing = STANDING | (SMALL_DISK if small_disk else {})
        _run(Bench(place, protocol, standing=True, small_disk=small_disk), standing, verdict, say)
    return verdict


def _run(
    bench: Bench, cases: Mapping[str, Callable[[Bench], Got]], verdict: Verdict, say: Callable[[str], None]
) -> None:
    for what, run in cases.items():
        say(f"{'lmtp' if bench.lmtp else 'smtp'}: {what}")
        bench.case(what, run)
    verdict.counts["cases"] += bench.count
    verdict.faults += bench.faults
    verdict.faults += bench.daemon.complaints()
    verdict.faults += bench.daemon.stop()
