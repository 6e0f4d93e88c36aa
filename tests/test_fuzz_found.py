"""What the fuzzer has found in the library, each by the input that showed it."""

import gzip
import os
import sqlite3
import time
from pathlib import Path

import pytest

from maildir_async.daemon.config import ConfigError, read_config
from maildir_async.daemon.notify import watchdog_s
from maildir_async.daemon.sockets import parse_address as parse_host
from maildir_async.daemon.sockets import passed
from maildir_async.disk.imported import Imported, Wanted
from maildir_async.disk.maildirsize import _is_trashed, _size_of
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.probing import _type_in
from maildir_async.disk.reading import Unchanged
from maildir_async.disk.seen import Seen
from maildir_async.errors import MaildirError
from maildir_async.format.keywords import LONGEST_LINE, format_keywords, parse_keywords
from maildir_async.format.quota import limits_of
from maildir_async.format.read_names import letters_of
from maildir_async.helper.recovery import _sizes_in
from maildir_async.mail_import.reading import MailFile
from maildir_async.mailbox.check_files import _broken
from maildir_async.mailbox.index import _existing
from maildir_async.smtp import proxied
from maildir_async.smtp.addresses import parse_address, parse_key
from maildir_async.smtp.proxied import SIGNATURE, ProxyHeaderError, parse_proxy


def test_a_size_is_said_before_the_colon_only(tmp_path: Path) -> None:
    """A number that happens to be the name of a message is not its size, though ``,S=`` stands in its info."""
    (tmp_path / "123:2,S,S=5").write_bytes(b"seven b")
    assert _size_of(PosixDisk(), str(tmp_path), "123:2,S,S=5") == 7


def test_sizes_are_those_of_the_name_and_not_of_its_directory() -> None:
    """A message that a dead helper has published has no sizes of a directory that is called like one."""
    assert _sizes_in("/home/x,S=1,W=2/cur/1.a.b:2,S") is None
    assert _sizes_in("/home/x,S=1,W=2/cur/1.a.b,S=3,W=4:2,S") == (3, 4)


def test_letters_follow_the_first_colon() -> None:
    """What stands behind a second colon, or a second comma, is no flag, to whoever reads the name."""
    assert letters_of("a:1,x:2,T") == _existing("/x/a:1,x:2,T").flags == ""
    assert not _is_trashed("a:1,x:2,T")
    assert letters_of("a:2,S,T") == _existing("/x/a:2,S,T").flags == "S"


def test_a_keyword_is_the_same_once_it_has_been_written() -> None:
    """A CR before a NUL is not of a keyword: it would be gone with the next keyword that is added."""
    assert parse_keywords(b"0 a\r\0x\n1 \r\0\n") == {0: "a"}
    assert parse_keywords(format_keywords({0: "a"})) == {0: "a"}


def test_the_lines_of_no_use_are_those() -> None:
    """A line like the last one, which has no end, is of use; none is that stands behind one that is too long."""
    assert _broken(b"0 a\n0 a") == "'0 a'"
    assert _broken(b"0 a\n" + b"x" * LONGEST_LINE + b"\n1 b\n").endswith("'1 b'")
    assert _broken(b"x\n" * 100_000).endswith("…")


def test_a_unit_is_ascii() -> None:
    """A long s, whose capital is S, is no unit of a quota."""
    with pytest.raises(ValueError, match="a quota such as"):
        limits_of("65\u017f")


def test_a_damaged_schema_that_is_no_text_is_a_damaged_database(tmp_path: Path) -> None:
    """Where SQLite's message is no UTF-8, duplicates begin anew, and an import says that its journal is damaged."""
    path = tmp_path / "seen"
    seen = Seen(str(path), 1000.0, time.time, PosixDisk())
    seen.remember([(b"id", "/x")])
    seen.close_all()
    octets = path.read_bytes().replace(b"tableseenseen", b"tables\x9censeen")
    path.write_bytes(octets.replace(b"CREATE TABLE", b"CREXTE TABLE"))
    connection = sqlite3.connect(path)
    with pytest.raises(UnicodeDecodeError):  # or this is about nothing
        connection.execute("SELECT * FROM seen")
    connection.close()
    found, warning = seen.find([b"id"])
    assert found == {}
    assert warning is not None
    assert "set aside" in warning
    seen.close_all()
    damaged = next(tmp_path.glob("seen.corrupt-*"))
    journal = Imported(str(damaged), PosixDisk())
    with pytest.raises(MaildirError, match="it is damaged"):
        journal.open()
    journal.close(is_finished=False)


def test_columns_of_another_type_are_damage(tmp_path: Path) -> None:
    """A number of copies that has become a text is told as damage; a path that has is not remembered."""
    journal = Imported(str(tmp_path / "imported"), PosixDisk())
    journal.open()
    journal.begin("tag", [])
    journal.record([(b"id", 1)])
    journal.close(is_finished=False)
    with sqlite3.connect(tmp_path / "imported") as connection:
        connection.execute("UPDATE imported SET copies = 'many'")
    connection.close()
    journal.open()
    with pytest.raises(MaildirError, match="it is damaged"):
        journal.find([Wanted(b"id", b"content")])
    journal.close(is_finished=False)
    seen = Seen(str(tmp_path / "seen"), 1000.0, time.time, PosixDisk())
    seen.remember([(b"id", "/x")])
    seen.close()
    with sqlite3.connect(tmp_path / "seen") as connection:
        connection.execute("UPDATE seen SET path = 5")
    connection.close()
    assert seen.find([b"id"]) == ({}, None)
    seen.close_all()


def test_many_small_pieces_of_gzip_are_read_in_large_ones(tmp_path: Path) -> None:
    """Ten thousand compressed lines, one after the other, are one piece: who looks through it does so once."""
    path = tmp_path / "mail.gz"
    path.write_bytes(gzip.compress(b"a\n") * 10_000 + bytes(100))
    file = Unchanged(str(path))
    odd: list[object] = []
    pieces = list(MailFile(file, lambda *told: odd.append(told)).pieces())
    file.close()
    assert [len(piece) for piece in pieces] == [20_000]
    assert odd == []


def test_what_was_read_before_a_disk_failed_is_not_lost(tmp_path: Path) -> None:
    """Of a compressed file that cannot be read on, all that could be is given before the error is raised."""
    path = tmp_path / "mail.gz"
    path.write_bytes(gzip.compress(b"a" * 5000, 0) + gzip.compress(b"b" * 5000, 0)[:-20])

    class Failing(Unchanged):
        has_begun = False

        def read(self, size: int) -> bytes:
            if self.has_begun:
                raise OSError(5, os.strerror(5))
            self.has_begun = True
            return super().read(size)

    file = Failing(str(path))
    mail = MailFile(file, lambda *_: None)
    given = mail.read(1 << 20)
    assert given.startswith(b"a" * 5000 + b"b")
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            mail.read(1 << 20)
    file.close()


def test_an_address_of_accents_is_nobody() -> None:
    """No time is spent on an address that is longer than any path of SMTP."""
    text = "a+" + "\u0300\u0323" * 500_000 + "@b.example"
    began = time.process_time()
    assert parse_address(text) is None
    assert parse_key(text) is None
    assert time.process_time() - began < 5  # it was minutes


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "a = " + "9" * 5000], ids=["deep", "long"])
def test_what_tomllib_cannot_read_is_a_mistake_in_the_file(tmp_path: Path, text: str) -> None:
    """Arrays a thousand deep, and a number of thousands of digits, are a ConfigError, and no traceback."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="line 1"):
        read_config(str(path))


def test_lines_of_the_file_are_those_of_an_editor(tmp_path: Path) -> None:
    """A line separator of Unicode in a comment does not move the lines that mistakes are told of."""
    path = tmp_path / "config.toml"
    path.write_text("# \u2028 \x85\nlmtp = 5\n", encoding="utf-8")
    assert read_config(str(path)).top.place("lmtp") == f"{path}, line 2: lmtp"


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "a\0b", "\udcff"])
def test_a_host_that_no_resolver_takes_is_none(host: str) -> None:
    """A host to listen at that getaddrinfo would raise UnicodeError for is told as what it is."""
    with pytest.raises(ValueError, match="not the name of a host"):
        parse_host(f"{host}:25")


def test_what_systemd_would_not_write_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of descriptors in other digits than ASCII's, and one of a thousand digits, are none."""
    assert passed({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "\u0661"}) == []
    monkeypatch.setenv("WATCHDOG_USEC", "9" * 5000)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_s() is None


def test_half_a_line_of_mountinfo_says_nothing() -> None:
    """Where the table of mounts has been cut off, the file system is not known."""
    assert _type_in(b"36 35 98:0 / /mnt rw", b"98:0") is None
    assert _type_in(b"36 35 98:0 / /mnt rw - ", b"98:0") is None


def test_a_proxy_header_has_one_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of right ones, each of which takes milliseconds to check, are refused at the second."""
    monkeypatch.setattr(proxied, "_crc32c", lambda _: 0)
    tlv = b"\x03\0\x04" + bytes(4)
    head = SIGNATURE + b"\x21\0"
    assert parse_proxy(head + len(tlv).to_bytes(2, "big") + tlv) is None
    with pytest.raises(ProxyHeaderError, match="more than one"):
        parse_proxy(head + len(2 * tlv).to_bytes(2, "big") + 2 * tlv)
