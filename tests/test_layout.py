"""Who exists: a layout says so only where it is certain, and an address with a detail is the user's that it names."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import NotAMaildirError
from maildir_async.smtp import Layout, Target, UserFile


def make_maildir(path: Path) -> None:
    (path / "new").mkdir(parents=True)


async def test_who_certainly_does_not_exist(tmp_path: Path) -> None:
    """Where each directory on the way has been seen, and the next name is taken by nothing, nobody has the address."""
    make_maildir(tmp_path / "mail" / "a.example" / "alice" / "Maildir")
    (tmp_path / "mail" / "a.example" / "bob").mkdir()
    (tmp_path / "mail" / "a.example" / "carol" / "Maildir").mkdir(parents=True)
    layout = Layout(f"{tmp_path}/mail/{{domain}}/{{user}}/Maildir")
    assert await layout("alice@a.example") == await asyncio.to_thread(layout.find, "alice@a.example") is not None
    for address in ("x@a.example", "bob@a.example", "carol@a.example", "alice@b.example"):
        assert await layout(address) is None
        assert await asyncio.to_thread(layout.find, address) is None


def no_root(mail: Path) -> None:
    (mail / "a.example" / "x").rename(mail.parent / "elsewhere")
    (mail / "a.example").rmdir()
    mail.rmdir()


def dangling_root(mail: Path) -> None:
    mail.rename(mail.parent / "elsewhere")
    mail.symlink_to("nowhere")


def empty_root(mail: Path) -> None:
    mail.rename(mail.parent / "elsewhere")
    mail.mkdir()


def file_root(mail: Path) -> None:
    mail.rename(mail.parent / "elsewhere")
    mail.write_bytes(b"")


def instead(where: str, what: str) -> Callable[[Path], None]:
    def make(mail: Path) -> None:
        at = mail / where
        at.parent.mkdir(parents=True, exist_ok=True)
        if at.exists():
            at.rename(mail.parent / "elsewhere")
        if what == "file":
            at.write_bytes(b"")
        else:
            at.symlink_to(at.name if what == "loop" else "nowhere")

    return make


def all_dangling(mail: Path) -> None:
    (mail / "a.example" / "alice" / "Maildir").mkdir(parents=True)
    for name in ("cur", "new", "tmp"):
        (mail / "a.example" / "alice" / "Maildir" / name).symlink_to("nowhere")


PLACES: Final = ("a.example", "a.example/alice", "a.example/alice/Maildir", "a.example/alice/Maildir/tmp")
AWAY: Final[dict[str, Callable[[Path], None]]] = {
    **{make.__name__: make for make in (no_root, dangling_root, empty_root, file_root, all_dangling)},
    **{f"{what} {place}": instead(place, what) for place in PLACES for what in ("link", "file", "loop")},
}


@pytest.mark.parametrize("make", AWAY.values(), ids=AWAY)
async def test_a_store_that_is_away_makes_nobody_unknown(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """What cannot be seen through, at whatever place of the way, is an error that may heal, and nothing is made."""
    (tmp_path / "mail" / "a.example" / "x").mkdir(parents=True)
    make(tmp_path / "mail")
    before = sorted(os.listdir(tmp_path))
    layout = Layout(f"{tmp_path}/mail/{{domain}}/{{user}}/Maildir")
    with pytest.raises((NotAMaildirError, OSError)):
        await layout("alice@a.example")
    with pytest.raises((NotAMaildirError, OSError)):
        await asyncio.to_thread(layout.find, "alice@a.example")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("number", ["EIO", "ESTALE", "ENOTCONN", "ENAMETOOLONG", "EACCES"])
def test_what_the_system_says_makes_nobody_unknown(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    """A stale mount, a server that has gone, a disk that cannot be read."""

    def failing(*_: Any, **__: Any) -> Any:
        raise OSError(getattr(errno, number), number)

    monkeypatch.setattr("maildir_async.smtp.looking.os.stat", failing)
    with pytest.raises(OSError, match=number):
        Layout("/mail/{user}").find("alice@example.com")


# The parts before and behind a delimiter.


async def test_a_maildir_with_a_delimiter_in_its_name_wins(tmp_path: Path) -> None:
    """Anna-Maria's mail is not Anna's; what is nobody's whole name is a detail, with whatever in it."""
    for name in ("anna", "anna-maria", "owner-list", "x"):
        make_maildir(tmp_path / name)
    layout = Layout(f"{tmp_path}/{{user}}", delimiters="+-")
    for local, name in (
        ("Anna-Maria", "anna-maria"),
        ("anna-maria+x", "anna"),
        ("anna-x/../y", "anna"),
        ("anna+" + "y" * 200, "anna"),
        ("anna-", "anna"),
        ("owner-list", "owner-list"),
    ):
        found = await layout(f"{local}@example.com")
        assert found is not None
        assert os.fspath(found) == f"{tmp_path}/{name}", local
    for local in ("maria-anna", "-anna", "owner-anna", "anna.x"):
        assert await layout(f"{local}@example.com") is None, local
    assert await Layout(f"{tmp_path}/{{user}}", delimiters="")("anna+x@example.com") is None


@pytest.mark.parametrize("kind", ["create", "users", "disk"])
async def test_a_detail_is_told(tmp_path: Path, kind: str) -> None:
    """As it is written, of a user who was found without it, and of no other."""
    for name in ("alice", "alice+own"):
        make_maildir(tmp_path / name)
    (tmp_path / "users").write_text("alice@example.com\nalice+own@example.com\n")
    users = UserFile(tmp_path / "users")
    users.load()
    layout = Layout(f"{tmp_path}/{{user}}", users=users if kind == "users" else None, create=kind == "create")
    assert await layout("Alice+Lists@Example.com") == Target(f"{tmp_path}/alice", "Alice+Lists@Example.com", "Lists")
    for address in ("alice@example.com", "alice+@example.com"):
        assert await layout(address) == f"{tmp_path}/alice"
    if kind != "create":  # where nobody knows who there is
        assert await layout("alice+own@example.com") == f"{tmp_path}/alice+own"


async def test_a_user_listed_with_a_delimiter_wins(tmp_path: Path) -> None:
    """The one whose whole name is listed before the one whose detail it would begin."""
    (tmp_path / "users").write_text("o@example.com\no-neil@example.com\nreply@example.com\n")
    users = UserFile(tmp_path / "users")
    users.load()
    layout = Layout("/mail/{user}", users=users, delimiters="-+")
    for local, name in (("O-Neil", "o-neil"), ("o-neil-x", "o"), ("o+neil", "o"), ("reply+" + "x" * 188, "reply")):
        found = await layout(f"{local}@example.com")
        assert found is not None
        assert os.fspath(found) == f"/mail/{name}", local
    assert await Layout("/mail/{user}", users=users)("o-neil-x@example.com") is None
    assert await Layout("/mail/{user}", users=users, delimiters="")("o+x@example.com") is None


@pytest.mark.parametrize("line", ["alice+a/b@example.com", "alice+../x@example.com", '"alice+ "@example.com', "a+..@b"])
def test_a_detail_that_could_be_no_directory_cannot_be_listed(tmp_path: Path, line: str) -> None:
    """A user of a file has a directory of his whole name."""
    (tmp_path / "users").write_text(f"alice@example.com\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        UserFile(tmp_path / "users").load()


@pytest.mark.parametrize("line", ["*@example.org", "@example.org"])
def test_a_file_of_users_has_no_whole_domains(tmp_path: Path, line: str) -> None:
    """What means everybody elsewhere is not taken for a user of that name."""
    (tmp_path / "users").write_text(f"{line}\n")
    with pytest.raises(ValueError, match="line 1"):
        UserFile(tmp_path / "users").load()


async def test_a_file_of_users_is_not_emptied(tmp_path: Path) -> None:
    """Half a file is one with fewer users, and none is a mistake: the old ones stay. The first may be empty."""
    users = UserFile(tmp_path / "users")
    (tmp_path / "users").write_text("# none yet\n")
    users.load()
    users.load()
    (tmp_path / "users").write_text("alice@example.com\n")
    users.load()
    (tmp_path / "users").write_text("# \n")
    with pytest.raises(ValueError, match="no addresses any more"):
        users.load()
    assert await Layout("/mail/{user}", users=users)("alice@example.com") == "/mail/alice"


async def test_a_field_in_an_address_is_no_field() -> None:
    """A local part may have braces in it."""
    layout = Layout("/mail/{domain}/{user}", create=True)
    assert await layout("{domain}@example.com") == "/mail/example.com/{domain}"
    assert await layout("{user}@example.com") == "/mail/example.com/{user}"
    assert await layout("alice@{user}") is None
