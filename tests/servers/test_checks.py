"""The checks of the rig find what they are for, on logs and mailboxes that are made up: no server runs here."""

import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from .checks import Verdict, check
from .clients import Talk
from .mail import SIZE_LIMIT, USERS, digest, letters
from .mailboxes import Copy, Refusal, check_files, copy_of
from .postfix_log import PostfixLog
from .send import Accepted

FIRST, SECOND, REFUSED, BOUNCE = "4jYb693mvyzMwLM", "4jYb693nV4zMwLN", "4jYb693prFzMwLP", "4jYb693rbkzMwLR"

LINE = "Nov 24 08:{at} host postfix/{what}"
SENT = (
    "lmtp[7]: {id}: to=<{to}>, relay=mx.test[/run/s], delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0)"
)
DEFERRED = (
    "lmtp[7]: {id}: to=<{to}>, relay=mx.test[/run/s], delay=0.1, delays=0/0/0/0.1, dsn=4.4.2, status=deferred "
    "(lost connection with mx.test[/run/s] while sending end of data -- message may be sent more than once)"
)
BOUNCED = (
    "lmtp[7]: {id}: to=<{to}>, relay=mx.test[/run/s], delay=0.1, delays=0/0/0/0.1, dsn=5.1.1, status=bounced "
    "(host mx.test[/run/s] said: 550 5.1.1 No such user here (in reply to RCPT TO command))"
)


def log(*lines: tuple[str, str]) -> PostfixLog:
    """Return a log of these: minutes and seconds, and what was said."""
    found = PostfixLog(Path("/nonexistent"))
    found.take([LINE.format(at=at, what=what) for at, what in lines])
    return found


def sent(queue_id: str, to: str, at: str = "00:01") -> tuple[str, str]:
    return at, SENT.format(id=queue_id, to=to)


def removed(queue_id: str) -> tuple[str, str]:
    return "00:09", f"qmgr[8]: {queue_id}: removed"


ACCEPTED = [
    Accepted(FIRST, "1", 100, "sender0@a.test", ("user01@a.test", "USER03+x@a.test")),
    Accepted(SECOND, "2", 100, "sender0@a.test", ("user01@a.test",), wave=1),
    Accepted(REFUSED, "3", 100, "sender0+b@a.test", ("ghost@a.test",)),
]
LOG = (
    sent(FIRST, "user01@a.test"),
    sent(FIRST, "USER03+x@a.test"),
    sent(SECOND, "user01@a.test", "00:05"),
    ("00:02", BOUNCED.format(id=REFUSED, to="ghost@a.test")),
    ("00:02", f"bounce[9]: {REFUSED}: sender non-delivery notification: {BOUNCE}"),
    sent(BOUNCE, "sender0+b@a.test"),
    *map(removed, (FIRST, SECOND, REFUSED, BOUNCE)),
)


def copy(user: str, uid: int, queue_id: str, content: str, sender: str = "sender0@a.test") -> Copy:
    trace = (("Return-Path", f"<{sender}>"), ("Received", "by us"), ("Received", "by Postfix"))
    return Copy(user, uid, queue_id, trace, content, 100, 100)


COPIES = {
    "first": copy("user01@a.test", 1, FIRST, "1"),
    "second": copy("user01@a.test", 2, SECOND, "2"),
    "other": copy("user03@a.test", 1, FIRST, "1"),
    "bounce": replace(
        copy("sender0@a.test", 1, BOUNCE, "any", ""),
        refusals=(Refusal(REFUSED, "ghost@a.test", "5.1.1", "smtp; 550 5.1.1 No such user here"),),
    ),
}


def verdict(*lines: tuple[str, str], copies: dict[str, Copy] = COPIES) -> Verdict:
    return check(ACCEPTED, log(*(lines or LOG)).histories, list(copies.values()), USERS)


def test_what_is_as_it_should_be_is_right() -> None:
    """Nothing is found where every message is where the log says; and everything is counted."""
    found = verdict()

    assert (found.faults, found.disorder) == ([], [])
    counts = {"accepted": 3, "delivered": 4, "refused": 1, "bounces": 1, "pairs in order": 1}
    assert +found.counts == Counter(counts)


def changed(name: str, **changes: object) -> dict[str, Copy]:
    return COPIES | {name: replace(COPIES[name], **changes)}  # type: ignore[arg-type]


def without(name: str) -> dict[str, Copy]:
    return {each: copy for each, copy in COPIES.items() if each != name}


def with_trace(*fields: tuple[str, str]) -> dict[str, Copy]:
    return changed("first", trace=(*COPIES["first"].trace, *fields))


@pytest.mark.parametrize(
    ("copies", "fault"),
    [
        (without("first"), f"{FIRST} for user01@a.test: LOST"),
        (without("other"), f"{FIRST} for USER03+x@a.test: LOST"),
        (without("bounce"), "its sender has no bounce"),
        (COPIES | {"again": replace(COPIES["first"], uid=3)}, "2 copies, and 0 replies that were not heard"),
        (COPIES | {"stray": copy("user05@a.test", 1, FIRST, "1")}, f"user05@a.test has 1 of {FIRST}"),
        (COPIES | {"stray": copy("user01@a.test", 9, "", "1")}, "a message that Postfix does not know"),
        (changed("first", digest="x"), "its bytes are not those"),
        (changed("first", octets=99), "RFC822.SIZE is 100, and it has 99 octets"),
        (changed("first", trace=COPIES["first"].trace[1:]), "its trace fields are"),
        (with_trace(("X-Peer", "")), "its trace fields are"),
        (with_trace(("Received", "again")), "its trace fields are"),
        (with_trace(("Delivered-To", "user03@a.test")), "Delivered-To is user03@a.test"),
        (with_trace(("X-Original-To", "USER03+x@a.test")), "X-Original-To tells of USER03+x@a.test"),
        (changed("first", trace=(("Return-Path", "<x@a.test>"), *COPIES["first"].trace[1:])), "Return-Path is <x@"),
        (changed("bounce", refusals=(Refusal(REFUSED, "ghost@a.test", "5.0.0", ""),)), "a wrong bounce: 5.0.0"),
        (changed("bounce", refusals=(Refusal(REFUSED, "ghost@a.test", "5.1.1", ""),)), "a wrong bounce: 5.1.1"),
    ],
)
def test_a_wrong_mailbox_is_found(copies: dict[str, Copy], fault: str) -> None:
    """Mail that is lost, twice there, altered, astray, of a wrong size or with wrong trace fields is a fault."""
    assert any(fault in each for each in verdict(copies=copies).faults)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([line for line in LOG if line != LOG[0]], "Postfix has not done with it"),
        ([("00:01", BOUNCED.format(id=FIRST, to="user01@a.test")), *LOG[1:]], "bounced (host"),
        ([*LOG[:3], sent(REFUSED, "ghost@a.test"), *LOG[4:]], "should have been refused with 5.1.1, and is sent"),
        ([(a, b.replace("550 5.1.1", "500 5.5.1")) for a, b in LOG], "refused with a wrong code"),
        ([(a, b.replace("dsn=5.1.1", "dsn=5.0.0")) for a, b in LOG], "should have been refused with 5.1.1"),
        ([*LOG[:4], *LOG[5:]], "a bounce is due"),
        ([*LOG, ("00:09", f"bounce[9]: {SECOND}: sender non-delivery notification: {FIRST}")], "a bounce is not due"),
    ],
)
def test_a_wrong_log_is_found(lines: list[tuple[str, str]], fault: str) -> None:
    """A message that is not settled, bounced or accepted against the rules, or with a wrong code, is a fault."""
    assert any(fault in each for each in verdict(*lines).faults)


def test_message_that_is_too_large_has_to_bounce() -> None:
    """What is beyond the limit of the daemon must not have been delivered."""
    large = [replace(ACCEPTED[0], size=SIZE_LIMIT + 1), *ACCEPTED[1:]]

    found = check(large, log(*LOG).histories, list(COPIES.values()), USERS)

    assert any("should have been refused with 5.3.4, and is sent" in fault for fault in found.faults)


def test_duplicate_is_legitimate_only_where_no_reply_was_heard() -> None:
    """One more copy for each time that Postfix says "may be sent more than once", and no more."""
    again = COPIES | {"again": replace(COPIES["first"], uid=3)}
    lost = ("00:01", DEFERRED.format(id=FIRST, to="user01@a.test"))

    assert verdict(lost, *LOG, copies=again).faults == []
    assert verdict(lost, *LOG, copies=again).counts["duplicates"] == 1
    thrice = again | {"thrice": replace(COPIES["first"], uid=4)}
    assert any("3 copies, and 1 replies" in fault for fault in verdict(lost, *LOG, copies=thrice).faults)
    other = ("00:01", DEFERRED.format(id=FIRST, to="USER03+x@a.test"))
    assert any("2 copies, and 0 replies" in fault for fault in verdict(other, *LOG, copies=again).faults)


def test_uids_against_arrival_are_found() -> None:
    """A later wave, or a delivery that began when the other was over, must have the higher UID; else nobody knows."""
    swapped = changed("first", uid=2) | {"second": replace(COPIES["second"], uid=1)}
    assert [fault.partition(":")[0] for fault in verdict(copies=swapped).disorder] == ["user01@a.test"]

    one_wave = [replace(message, wave=0) for message in ACCEPTED]
    by_clock = check(one_wave, log(*LOG).histories, list(swapped.values()), USERS)
    assert len(by_clock.disorder) == 1
    at_once = [(a.replace("00:05", "00:01"), b) for a, b in LOG]
    assert check(one_wave, log(*at_once).histories, list(swapped.values()), USERS).disorder == []


def test_copy_is_split_where_postfix_s_field_ends() -> None:
    """What was sent begins behind the Received field that Postfix wrote; line ends do not matter."""
    received = (
        f"Received: from x (x [127.0.0.1])\r\n\tby mx.test (Postfix) with ESMTP id {FIRST}\r\n\tfor <u@a.test>; x\r\n"
    )
    content = "Received: by mail.test\r\n (maildir)\r\n" + received + "X-Rig: 1\r\nReceived: older\r\n\r\nhello\r\n"

    found = copy_of("user01@a.test", 1, content.encode(), 7)

    assert found.queue_id == FIRST
    assert [name for name, _ in found.trace] == ["Received", "Received"]
    assert found.digest == digest(b"X-Rig: 1\nReceived: older\n\nhello\n")
    assert copy_of("user01@a.test", 1, b"Subject: x\n\nhello\n", 7).queue_id == ""


def test_wrong_files_are_found(tmp_path: Path) -> None:
    """A name whose sizes are not the file's, or have none, and a file left in tmp/ are faults."""
    for name in ("tmp", "new", "cur"):
        (tmp_path / name).mkdir()
    (tmp_path / "cur/1.host,S=3,W=4:2,S").write_bytes(b"ab\n")
    assert check_files({"user": tmp_path}, killed=False) == []

    (tmp_path / "new/2.host,S=3,W=5").write_bytes(b"ab\n")
    (tmp_path / "new/3.host,S=4,W=4").write_bytes(b"ab\n")
    (tmp_path / "new/4.host").write_bytes(b"ab\n")
    (tmp_path / "tmp/5").touch()
    assert len(check_files({"user": tmp_path}, killed=False)) == 4
    assert len(check_files({"user": tmp_path}, killed=True)) == 3


def test_log_s_complaints_are_kept() -> None:
    """A warning in Postfix's log, and what is no line of it, are complaints; daily business is not."""
    found = log(*LOG, ("00:09", "lmtp[7]: warning: something is wrong"))
    found.take(["what is this?"])

    assert [line[-5:] for line in found.complaints] == ["wrong", "this?"]
    assert found.unfinished == []
    assert log(*LOG[:-1]).unfinished == [BOUNCE]


class Mouth:
    """A daemon that says what it is told to."""

    def __init__(self, *replies: str) -> None:
        self._said = "".join(f"{reply}\r\n" for reply in replies).encode()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(self._said)
        return ours


@pytest.mark.parametrize(
    ("replies", "faults"),
    [
        (["250-x", "250 2.0.0 fine"], 0),
        (["550 5.1.1 no"], 1),
        ([], 1),
        (["250 2.0.0 saved as /tmp/x"], 1),
        (["250 2.0.0 no OSError"], 1),
    ],
)
def test_wrong_reply_is_found(replies: list[str], faults: int) -> None:
    """A reply that is another, none at all, or one that holds a path or a class's name is a fault."""
    talk = Talk(Mouth("220 hello", *replies), True, [])
    talk.expect("250 ")
    talk.close()

    assert len(talk.faults) == faults


@pytest.mark.parametrize(
    ("replies", "faults"),
    [
        (["354 go on", "452 4.3.1 full"], 0),
        (["452 4.3.1 full"], 0),
        (["354 go on", "250 2.0.0 fine"], 1),
        (["354 go on"], 1),
        (["250 2.0.0 fine"], 1),
    ],
)
def test_message_that_is_not_refused_is_found(replies: list[str], faults: int) -> None:
    """A message may be refused before it is sent or after that, and has to be."""
    talk = Talk(Mouth("220 hello", *replies), True, [])
    talk.message(b"x\r\n.\r\n", "452 ")
    talk.close()

    assert len(talk.faults) == faults


def test_letters_are_what_was_asked_for() -> None:
    """Their number, sizes and contents are as asked, the same each time; one is too large, and some have no user."""
    found = letters(200, 2**20, seed=1)

    assert len(found) == 200
    assert [letter.size for letter in found] == [letter.size for letter in letters(200, 2**20, seed=1)]
    sizes = sorted(letter.size for letter in found)
    assert (sizes[0] >= 2**10, sizes[-2], sizes[-1] > SIZE_LIMIT) == (True, 2**20, True)
    contents = [letter.content() for letter in found[:20]]
    assert len(set(contents)) == 20
    assert contents == [letter.content() for letter in found[:20]]
    for letter, content in zip(found, contents, strict=False):
        assert letter.size <= len(content) <= letter.size * 1.2 + 10_000
        assert content.replace(b"\r\n", b"\n") == letter.content(b"\n")
    assert any(not set(letter.recipients) <= USERS for letter in found)
    assert any(len(letter.recipients) > 1 for letter in found)
