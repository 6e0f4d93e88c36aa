"""A maildir looked at for what is wrong with it, and put right if that is asked: ``maildir-async check``. Blocks.

Others go on reading and delivering. A message that they move while this looks is no problem; it may be left out.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial

from maildir_async.disk.directories import MARKER, SUBDIRECTORIES, Directories
from maildir_async.disk.listing import clean_tmp
from maildir_async.disk.scanning import Scanned, scan
from maildir_async.errors import MaildirError, NotAMaildirError
from maildir_async.format.folders import folder_of
from maildir_async.format.problems import CheckOptions, CheckReport, Problem
from maildir_async.mailbox.check_files import check_keywords_file, check_quota
from maildir_async.mailbox.check_messages import check_messages
from maildir_async.mailbox.examining import Examiner, kind_of_file
from maildir_async.mailbox.settling import Settling, reason
from maildir_async.mailbox.upkeep import is_in_use

__all__ = ["Check"]


class Check:
    """Looks at one maildir.

    Args:
        directories: of the maildir itself. What is missing is made with the rights of the directory it lies in.
        options: see there.
        tell: is given each problem as it is found, or, with a repair, as it is settled.
        is_wanted: called for each message; what it raises ends this: what has been told is done, and nothing else.

    """

    def __init__(
        self,
        directories: Directories,
        options: CheckOptions,
        tell: Callable[[Problem], None],
        is_wanted: Callable[[], None],
    ) -> None:
        self._root = directories
        self._options = options
        self._settling = Settling(options, tell)
        self._is_wanted = is_wanted
        self._uid = 0

    def run(self) -> CheckReport:
        """Look at all of it, and return how much of what has been found. `NotAMaildirError` if it is no maildir."""
        root = self._root
        try:
            self._uid = root.disk.stat(f"{root.path}/.").st_uid
        except FileNotFoundError:
            raise root.incomplete() from None
        except NotADirectoryError as exc:
            raise root.not_a_maildir(root.path, exc) from None
        if not any(map(self._is_there, map(root.subdirectory, SUBDIRECTORIES))):
            raise root.incomplete()
        for folder, box in self._boxes():
            self._settling.report.folders += 1
            self._check_folder(folder, box)
        check_quota(root, self._options, self._settling, self._is_wanted)
        return self._settling.report

    def _is_there(self, path: str) -> bool:
        try:
            self._root.disk.stat(path)
        except FileNotFoundError:
            return False
        except OSError:
            pass
        return True

    def _boxes(self) -> Iterator[tuple[str | None, Directories]]:
        """Yield the maildir itself, and then each folder: also one that lacks the ``cur/`` by which readers know it."""
        root, encoding = self._root, self._options.encoding
        yield None, root
        with scan(root.disk, root.path) as scanned:
            names = [
                name
                for name in scanned.names()
                if name.startswith(".") and not name.startswith("..") and self._is_folder(scanned, name)
            ]
        for folder, name in sorted((folder_of(name, encoding) or name, name) for name in names):
            path = f"{root.path}/{name}"
            yield folder, Directories(path, disk=root.disk, create=True, base=root.base, root=root, inherit_mode=True)

    def _is_folder(self, scanned: Scanned, name: str) -> bool:
        found = scanned.stat(name)
        if found is None or not (stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            return False
        return any(self._is_there(f"{scanned.path}/{name}/{part}") for part in (*SUBDIRECTORIES, MARKER))

    def _check_folder(self, folder: str | None, box: Directories) -> None:
        try:
            box.check_inside()
        except (MaildirError, OSError) as exc:
            self._settling.leave(Problem("foreign", folder, box.path, f"it is not looked at: {reason(exc)}"))
            return
        self._check_directories(folder, box)
        try:
            examiner = Examiner(
                box,
                folder,
                self._uid,
                self._settling.report,
                is_quick=self._options.is_quick,
                is_wanted=self._is_wanted,
            )
        except OSError as exc:
            self._settling.leave(Problem("unreadable", folder, box.path, f"it cannot be looked at: {reason(exc)}"))
            return
        check_messages(box, folder, examiner, self._options, self._settling, self._is_wanted)
        self._check_tmp(folder, box)
        check_keywords_file(box, folder, examiner.letters, self._options, self._settling)

    def _check_directories(self, folder: str | None, box: Directories) -> None:
        """Look at ``new/``, ``cur/``, ``tmp/``, the file that makes it a folder, and who may do what with them."""
        disk = box.disk
        for name in (*SUBDIRECTORIES, *([MARKER] if box.root is not None else [])):
            path = f"{box.path}/{name}"
            try:
                found = disk.stat(path)
                if name != MARKER and not stat.S_ISDIR(found.st_mode):
                    self._check_leads_to_one(folder, box, path, found)
            except FileNotFoundError:
                self._settling.repair(
                    Problem("missing", folder, path, "it is not there", remedy="make it"), partial(_make, box)
                )
            except OSError as exc:
                self._settling.leave(Problem("unreadable", folder, path, f"it cannot be looked at: {reason(exc)}"))
        for path in (box.path, *(box.subdirectory(name) for name in SUBDIRECTORIES)):
            try:
                found = disk.stat(path)
                if not stat.S_ISDIR(found.st_mode):
                    found = disk.stat(f"{path}/.")
            except OSError:  # has been told of, or is as closed as what it lies in
                continue
            self._check_directory(folder, box, path, found)

    def _check_leads_to_one(self, folder: str | None, box: Directories, path: str, found: os.stat_result) -> None:
        """Tell of what stands in the place of a directory, unless it is a link to one: a site may have its reasons."""
        try:
            box.disk.stat(f"{path}/.")
        except OSError as exc:
            text = f"it is {kind_of_file(found.st_mode) or 'a file'}, and no directory: {reason(exc)}"
            self._settling.leave(Problem("foreign", folder, path, text))

    def _check_directory(self, folder: str | None, box: Directories, path: str, found: os.stat_result) -> None:
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != self._uid:
            text = f"it belongs to uid {found.st_uid}, and the maildir to uid {self._uid}"
            self._settling.leave(Problem("owner", folder, path, text))
        if mode & 0o700 != 0o700:
            text = f"its owner may not read, write and search it (mode {mode:04o}): chmod u+rwx"
            self._settling.leave(Problem("mode", folder, path, text))
        is_root = path == self._root.path
        allowed = (
            0o7777 if is_root else stat.S_IMODE(box.disk.stat(f"{self._root.path}/.").st_mode) | 0o700 | stat.S_ISGID
        )
        if is_root and mode & stat.S_IWOTH:
            self._settling.leave(
                Problem("mode", folder, path, f"everybody may write to it (mode {mode:04o}): chmod o-w")
            )
        if is_root and mode & 0o005 == 0o005:
            text = f"everybody may read mail in it that takes its mode from it (mode {mode:04o}): chmod o-rx"
            self._settling.leave(Problem("mode", folder, path, text, level="note"))
        if extra := mode & ~allowed:
            text = f"others may do more with it than with the maildir (mode {mode:04o})"
            problem = Problem("mode", folder, path, text, remedy=f"change its mode to {mode & ~extra:04o}")
            self._settling.repair(problem, partial(_close_to_others, box, path, allowed))

    def _check_tmp(self, folder: str | None, box: Directories) -> None:
        """Look for what dead processes have left, and for what is no file."""
        options, disk = self._options, box.disk
        try:
            if options.repair:
                for path in clean_tmp(box, options.tmp_age_s, is_in_use):
                    problem = Problem("tmp", folder, path, "it was left by a process that is dead", remedy="remove it")
                    self._settling.settle(problem.settled(f"removed {path}", repaired=True))
            now = time.time()
            with scan(disk, box.tmp) as scanned:
                for name in scanned.names():
                    self._is_wanted()
                    found = scanned.stat(name)
                    if found is None or is_in_use(name):
                        continue
                    path, age_s = f"{box.tmp}/{name}", now - found.st_ctime
                    if (kind := kind_of_file(found.st_mode)) is not None:
                        self._settling.leave(Problem("foreign", folder, path, f"it is {kind}"))
                    elif age_s > options.tmp_age_s:
                        text = f"nobody has touched it for {age_s / 3600:.0f} hours"
                        self._settling.settle(Problem("tmp", folder, path, text, remedy="remove it"))
        except (FileNotFoundError, NotADirectoryError, NotAMaildirError):
            return  # has been told of
        except OSError as exc:
            self._settling.leave(Problem("unreadable", folder, box.tmp, f"it cannot be read: {reason(exc)}"))


def _make(box: Directories) -> str:
    """Make what is missing of *box*, durably, and return what has been done."""
    warnings = Directories(box.path, disk=box.disk, create=True, base=box.base, root=box.root, inherit_mode=True).make()
    return "; ".join(["made it", *warnings])


def _close_to_others(box: Directories, path: str, allowed: int) -> str:
    """Take from a directory's mode what it has too much, and return what has been done."""
    disk = box.disk
    fd = disk.open_directory(path)
    try:
        mode = stat.S_IMODE(disk.stat(fd).st_mode) & allowed
        disk.chmod(fd, mode)
        disk.sync(fd)
    finally:
        disk.close(fd)
    return f"changed its mode to {mode:04o}"
