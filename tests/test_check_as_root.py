"""``info`` and ``check`` run by root on a user's maildir: no link of his is followed, and what is made is his."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import PosixDisk
from maildir_async.errors import MaildirError
from maildir_async.format.problems import CheckOptions, Problem
from maildir_async.mailbox.check import Check
from maildir_async.mailbox.inspection import inspect
from test_as_root import ALICE, BOB, GROUP, Site, as_user, lay, owners, site

__all__ = ["site"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: it takes root to check another's maildir")

MAIL: Final = b"Subject: x\n\nbody\n"
REPAIR: Final = CheckOptions(quiet_s=0.0, repair=True, links_age_s=-1.0, lock_patience_s=0.0, tmp_age_s=-1.0)


def box(site: Site) -> Path:
    """Make a maildir of alice's, with a message of hers and a folder."""
    root = site.root / "alice/Maildir"
    for each in (root, root / ".Archive"):
        for name in ("tmp", "new", "cur"):
            (each / name).mkdir(parents=True)
    (root / ".Archive/maildirfolder").touch()
    (root / "new/1.a.host").write_bytes(MAIL)
    (root / "dovecot-keywords").write_bytes(b"0 $Work\n")
    (root / "maildirsize").write_bytes(b"1000000S\n%d 1\n" % len(MAIL))
    for path in [root, *root.rglob("*")]:
        os.chown(path, ALICE, GROUP)
        path.chmod(0o700 if path.is_dir() else 0o600)
    return root


def check(root: Path, options: CheckOptions = REPAIR) -> list[Problem]:
    """Check and repair it as root."""
    found: list[Problem] = []
    Check(Directories(str(root), disk=PosixDisk(), create=False), options, found.append, lambda: None).run()
    return found


def test_a_user_s_maildir_is_clean(site: Site) -> None:
    """Root finds nothing wrong with a maildir that is the user's own."""
    assert check(box(site), CheckOptions(quiet_s=0.0)) == []


def test_what_root_repairs_stays_the_user_s(site: Site) -> None:
    """What is made, written anew or renamed belongs to the user, with rights for nobody else."""
    root = box(site)
    (root / "cur").rmdir()
    (root / ".Archive/maildirfolder").unlink()
    (root / "new/1.a.host").rename(root / "new/1.a.host,S=5:2,S")
    (root / "new/1.a.host,S=5:2,S").chmod(0o644)
    with (root / "dovecot-keywords").open("ab") as file:
        file.write(b"nonsense\n")
    with (root / "maildirsize").open("ab") as file:
        file.write(b"9 9\n")
    found = check(root)
    assert all(problem.repaired for problem in found), found
    assert {problem.kind for problem in found} == {"missing", "size", "info-in-new", "mode", "keywords", "quota"}
    assert owners(root) == {(ALICE, GROUP)}
    assert {path.stat().st_mode & 0o077 for path in [root, *root.rglob("*")]} == {0}
    assert check(root) == []
    assert os.listdir(root / "cur") == [f"1.a.host,S={len(MAIL)},W={len(MAIL) + 3}:2,S"]


@pytest.mark.parametrize("name", ["new", "cur", "tmp", ".Archive", ".Archive/new", ".Archive/tmp"])
def test_a_directory_that_leads_elsewhere_is_not_gone_to(site: Site, name: str) -> None:
    """Where the user has a link for a directory, what it leads to is neither listed, read, swept nor changed."""
    root = box(site)
    lay(root / name, site.victim / ("tmp" if "/" in name or "." not in name else ""))
    looked: Callable[[], object]
    for looked in (
        lambda: check(root),
        lambda: check(root, CheckOptions(quiet_s=0.0)),
        lambda: inspect(
            Directories(str(root), disk=PosixDisk(), create=False), "utf-7", lambda: None, by_files=True
        ).as_json(),
    ):
        try:
            told = repr(looked())
        except MaildirError as exc:
            told = str(exc)
        assert "precious" not in told
    assert site.look() == site.before


def test_files_that_lead_elsewhere_are_not_opened(site: Site) -> None:
    """Links for a message, for dovecot-keywords and for maildirsize are told of, and what they lead to is left."""
    root = box(site)
    precious = site.victim / "new/precious"
    for name in ("cur/2.a.host,S=5:2,S", "dovecot-keywords", "maildirsize"):
        lay(root / name, precious)
    found = check(root)
    assert {problem.kind for problem in found} == {"foreign", "keywords", "quota"}
    assert {problem.repaired for problem in found} == {False}
    assert site.look() == site.before


def test_what_is_root_s_is_not_given_away(site: Site) -> None:
    """A file of root's in a user's maildir may be one that he has moved there: it is told of, and stays root's."""
    root = box(site)
    secret = root / "new/2.a.host"
    secret.write_bytes(b"secret\n")
    secret.chmod(0o600)
    (root / "maildirsize").unlink()
    (problem,) = check(root)
    assert (problem.kind, problem.repaired) == ("owner", False)
    assert (secret.stat().st_uid, secret.stat().st_mode & 0o777) == (0, 0o600)


def test_what_its_owner_may_not_read_is_told_of(site: Site) -> None:
    """A directory and a message without the owner's bits are told of by a process of his; the rest is looked at."""
    root = box(site)
    (root / "cur").chmod(0o000)
    (root / "new/1.a.host").chmod(0o000)
    (root / "maildirsize").unlink()

    def look() -> tuple[list[tuple[str, str, bool | None]], list[str]]:
        found = [(str(problem.kind), os.path.basename(problem.path), problem.repaired) for problem in check(root)]
        directories = Directories(str(root), disk=PosixDisk(), create=False)
        return found, inspect(directories, "utf-7", lambda: None, by_files=False).folders[0].troubles

    found, troubles = as_user(ALICE, look)
    assert sorted(found) == [
        ("mode", "1.a.host", False),
        ("mode", "cur", False),
        ("unreadable", "1.a.host", False),
        ("unreadable", "cur", False),
    ]
    assert troubles == ["cur/ cannot be read: Permission denied"]


def test_one_who_is_not_the_owner_repairs_nothing(site: Site) -> None:
    """Whoever may read a maildir, and not write to it, is told what is wrong, and why it was not put right."""
    root = box(site)
    (root / "new/1.a.host").rename(root / "new/1.a.host,S=5:2,S")
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = sorted(map(str, root.rglob("*")))
    found = as_user(BOB, lambda: check(root, CheckOptions(quiet_s=0.0, repair=True, lock_patience_s=0.0)))
    assert {problem.repaired for problem in found if problem.level == "problem"} == {False}
    assert {problem.outcome for problem in found if problem.kind == "size"} == {"Permission denied"}
    assert sorted(map(str, root.rglob("*"))) == before
