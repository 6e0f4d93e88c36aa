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
from test_as_root import ALICE, GROUP, Site, lay, owners, site

__all__ = ["site"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: it takes root to check another's maildir")

MAIL: Final = b"Subject: x\n\nbody\n"
REPAIR: Final = CheckOptions(repair=True, links_age_s=-1.0, lock_patience_s=0.0, tmp_age_s=-1.0)


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
    assert check(box(site), CheckOptions()) == []


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
        lambda: check(root, CheckOptions()),
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
