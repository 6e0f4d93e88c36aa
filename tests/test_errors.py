import copy
import errno
import os
import pickle
import re
import socket

import pytest

import maildir_async
from maildir_async.errors import (
    SMTP_REPLIES,
    AppendError,
    BusyError,
    MaildirError,
    MessageTooLargeError,
    NotAMaildirError,
    Stage,
    UncertainAppendError,
    append_error,
)

# What large mail systems agree on: code and enhanced code for each errno. All else is 451 4.3.0.
VERDICTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM), "452 4.3.1"),
    errno.EDQUOT: "452 4.2.2",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR), "451 4.3.5"),
    **dict.fromkeys((errno.EAGAIN, errno.ESTALE), "451 4.2.0"),
    errno.EFBIG: "552 5.3.4",
    errno.ENAMETOOLONG: "554 5.3.5",
}
TREE: dict[type[Exception], type[Exception]] = {
    MaildirError: Exception,
    NotAMaildirError: MaildirError,
    AppendError: MaildirError,
    BusyError: AppendError,
    MessageTooLargeError: AppendError,
    UncertainAppendError: AppendError,
}
ALL: list[MaildirError] = [
    *(AppendError("x", errno=number, stage="write") for number in errno.errorcode),
    AppendError("x"),
    NotAMaildirError("x", errno=errno.ENOTDIR, stage="create"),
    BusyError("x", errno=errno.EAGAIN, stage="queue"),
    MessageTooLargeError("x", errno=errno.EFBIG, stage="receive"),
    UncertainAppendError("x", path="/p", errno=errno.EIO),
]


@pytest.mark.parametrize("number", [*errno.errorcode, None], ids=lambda number: errno.errorcode.get(number, "none"))
def test_reply_for_each_errno(number: int | None) -> None:
    """Each errno has the verdict the table gives it, and 451 4.3.0 if the table has none."""
    verdict = VERDICTS.get(number or 0, "451 4.3.0")
    assert AppendError("x", errno=number, stage="write").smtp_reply.startswith(f"{verdict} ")


def test_only_what_waiting_cannot_heal_is_permanent() -> None:
    """No errno but EFBIG and ENAMETOOLONG makes a failure permanent: a wrong 5xx loses mail."""
    permanent = {number for number in errno.errorcode if not AppendError("x", errno=number).temporary}
    assert permanent == {errno.EFBIG, errno.ENAMETOOLONG}
    assert AppendError("x").temporary


@pytest.mark.parametrize(
    ("error", "verdict", "temporary"),
    [
        (NotAMaildirError("x", errno=errno.EFBIG), "451 4.3.5", True),
        (BusyError("x", errno=errno.EFBIG), "451 4.3.2", True),
        (MessageTooLargeError("x"), "552 5.3.4", False),
        (UncertainAppendError("x", errno=errno.EFBIG), "451 4.3.0", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_reply_of_each_class(error: MaildirError, verdict: str, temporary: bool) -> None:
    """A class with a meaning of its own has a reply of its own, whatever the errno says."""
    assert error.smtp_reply.startswith(f"{verdict} ")
    assert error.temporary is temporary


def test_reply_is_one_well_formed_line() -> None:
    """A reply is one line of ASCII: code, enhanced code of the same class, text."""
    for error in ALL:
        match = re.fullmatch(r"([45])[0-5]\d ([45])\.\d{1,3}\.\d{1,3} [ -~]+", error.smtp_reply)
        assert match, error.smtp_reply
        assert match[1] == match[2]
        assert len(error.smtp_reply) <= 510  # RFC 5321 4.5.3.1.5
        assert error.temporary is (match[1] == "4")


@pytest.mark.parametrize("stage", ["create", "write", "publish"])
def test_reply_tells_nothing_of_the_inside(stage: Stage) -> None:
    """No reply has a path, a host name, or the text or number of an errno in it; the message has the first."""
    path = "/var/mail/alice"
    for number in errno.errorcode:
        text = os.strerror(number)
        error = append_error(OSError(number, text, f"{path}/tmp/1"), path=path, stage=stage)
        assert path in str(error)
        assert text in str(error)
        for secret in (path, "alice", socket.gethostname(), text, errno.errorcode[number], "rrno", "/"):
            assert secret not in error.smtp_reply


def test_reply_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site changes an entry of SMTP_REPLIES, and errors answer so, with the permanence of the new code."""
    error = AppendError("x", errno=errno.EDQUOT, stage="write")
    assert error.temporary
    monkeypatch.setitem(SMTP_REPLIES, errno.EDQUOT, "552 5.2.2 Mailbox full")
    assert error.smtp_reply == "552 5.2.2 Mailbox full"
    assert not error.temporary
    monkeypatch.setitem(SMTP_REPLIES, errno.EIO, "454 4.3.0 Disk")
    assert AppendError("x", errno=errno.EIO).smtp_reply == "454 4.3.0 Disk"


def test_tree() -> None:
    """The exceptions form the tree that the documentation draws, and are exported."""
    assert {kind: kind.__base__ for kind in TREE} == TREE
    for kind in TREE:
        assert getattr(maildir_async, kind.__name__) is kind


def test_facts_on_the_exception() -> None:
    """An error carries errno and stage, and the uncertain one the path of what is visible."""
    error = UncertainAppendError("text", path="/box/new/1", errno=errno.EIO)
    assert (str(error), error.path, error.errno, error.stage) == ("text", "/box/new/1", errno.EIO, "sync_directory")
    bare = AppendError("text")
    assert (bare.errno, bare.stage) == (None, None)


@pytest.mark.parametrize(
    ("cause", "number", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC, "No space left on device"),
        (OSError("no number"), None, "OSError: no number"),
        (ValueError("odd"), None, "ValueError: odd"),
        (MemoryError(), None, "MemoryError: "),
    ],
)
def test_append_error_keeps_the_cause(cause: Exception, number: int | None, reason: str) -> None:
    """What a disk or a bug raises becomes an AppendError with path, stage, errno and the cause attached."""
    error = append_error(cause, path="/box", stage="sync")
    assert type(error) is AppendError
    assert (error.errno, error.stage, error.__cause__) == (number, "sync", cause)
    assert str(error) == f"/box: sync failed: {reason}"


def test_append_error_leaves_ours_alone() -> None:
    """An error that is one of ours already stays what it is."""
    for error in ALL:
        assert append_error(error, path="/elsewhere", stage="write") is error


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy], ids=["pickle", "copy"])
def test_errors_travel_between_processes(copied: "type[MaildirError]") -> None:
    """An error that is pickled or copied keeps its class, text, errno, stage, path and reply."""
    for error in ALL:
        other = copied(error)  # type: ignore[arg-type]  # a function MaildirError -> MaildirError
        assert type(other) is type(error)
        assert (str(other), other.__dict__, other.smtp_reply) == (str(error), error.__dict__, error.smtp_reply)
