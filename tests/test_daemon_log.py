"""The daemon's log, and the memory that its processes share."""

import json
import logging
import os
import re
from typing import Any

import pytest

from maildir_async.daemon.board import Board
from maildir_async.daemon.log import LINE_LIMIT, MAX_WAITING, Log, LogHandler
from support import forked


def logged(reader: int) -> list[dict[str, Any]]:
    """Return what has been written, each line an object."""
    return [json.loads(line) for line in os.read(reader, 2**20).splitlines()]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("text", ["\n", "\0", '"', "\\", "é", "\udc80", "😀", "x"])
def test_a_line_is_an_object_that_fits(text: str, behind: bool) -> None:
    """Whatever a client says: one line, plain ASCII, valid JSON, and short enough to be written in one piece."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0), open(writer, "wb", buffering=0):
        log = Log(writer)
        if behind:
            log.write_behind()
        log.event(
            "info", "delivered", **{f"field{number}": text * 5000 for number in range(8)}, warnings=[text * 5000] * 9
        )
        log.close(10)
        data = os.read(reader, 2**20)

    assert data.isascii()
    assert data.count(b"\n") == 1
    assert len(data) <= LINE_LIMIT
    told = json.loads(data)
    assert (told["event"], told["pid"]) == ("delivered", os.getpid())
    assert told["field0"]
    assert not any("\ud800" <= character <= "\udfff" for character in told["field7"])


def test_what_is_unknown_is_left_out() -> None:
    """A field that is None or an empty list is not there; zero and the empty text are."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0), open(writer, "wb", buffering=0):
        Log(writer).event("info", "x", a=None, b=(), c=0, d="", e=0.12345678)
        (told,) = logged(reader)
    assert {name: told[name] for name in told.keys() - {"time", "level", "event", "pid"}} == {
        "c": 0,
        "d": "",
        "e": 0.123457,
    }


def test_nobody_waits_for_who_does_not_read() -> None:
    """With a pipe that is full, lines are dropped, at once or behind; how many is told when there is room again."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0), open(writer, "wb", buffering=0):
        while True:
            Log(writer).event("info", "filler", text="x" * 400)
            before = os.get_blocking(writer)
            os.set_blocking(writer, False)
            try:
                os.write(writer, b"\n")
            except BlockingIOError:
                break
            finally:
                os.set_blocking(writer, before)
        Log(writer).event("info", "lost")
        log = Log(writer)
        log.write_behind()
        for _ in range(MAX_WAITING + 1000):
            log.event("info", "waiting")
        told, lost = b"", 0
        while told.count(b'"waiting"') + lost < MAX_WAITING + 1000 or not told.endswith(b"\n"):
            told += os.read(reader, 2**16)
            if not lost and (found := re.search(rb'"lines": (\d+)}\n', told)):
                lost = int(found[1])
    assert lost >= 900, "all but what one write took"
    assert b'"lost"' not in told
    assert all(json.loads(line) for line in told.splitlines() if line)


def test_what_libraries_log_becomes_events() -> None:
    """A warning of a library is a line like the others, with its exception, but without a traceback."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0), open(writer, "wb", buffering=0):
        logger = logging.Logger("some.package")
        logger.addHandler(LogHandler(Log(writer)))
        logger.info("no")
        try:
            raise ZeroDivisionError("by\nzero")
        except ZeroDivisionError:
            logger.exception("went %s", "wrong")
        (told,) = logged(reader)
    assert told["level"] == "error"
    assert (told["logger"], told["message"], told["error"]) == (
        "some.package",
        "went wrong",
        "ZeroDivisionError: by\nzero",
    )


def test_the_board_is_shared_with_children() -> None:
    """What a forked worker tells of itself the others see; who is not there counts for nothing."""
    board = Board(3)
    assert not any(map(board.is_present, range(3)))
    assert board.all_loaded()
    board.want_next()

    def work() -> None:
        board.enter(1)
        board.tell(1, 4)

    forked(work)
    assert [board.is_present(slot) for slot in range(3)] == [False, True, False]
    assert board.connections == 4
    assert board.another_has_fewer(0, 5)
    assert not board.another_has_fewer(0, 4)
    assert not board.another_has_fewer(1, 4)
    assert board.all_loaded()
    board.want_next()
    assert not board.all_loaded()
    board.loaded(1, board.wanted)
    assert board.all_loaded()
    board.leave(1)
    assert board.connections == 0
    assert not board.another_has_fewer(0, 5)
