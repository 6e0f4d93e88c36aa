"""What a check has found in one folder is put right, beside readers that are at work. Everything here blocks.

No mail is removed: a name goes only where the same file has another. A name is changed under ``dovecot-uidlist.lock``,
by which Dovecot keeps others from doing the same, and replaces nothing; a directory that has got or lost a name is
synced before it is told. Whoever dies on the way leaves each message whole, under its old name or its new one.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Generator
from typing import Final

from maildir_async.disk.calls import UNSUPPORTED
from maildir_async.disk.directories import Directories, sync_directory
from maildir_async.disk.dotlock import Waiting, take
from maildir_async.disk.publishing import move
from maildir_async.disk.rights import files_rights
from maildir_async.errors import MaildirError
from maildir_async.format.names import UniqueNames
from maildir_async.format.problems import Problem
from maildir_async.format.read_names import sizes_of
from maildir_async.mailbox.examining import Finding

__all__ = ["Repairs"]

#: Findings that are put right under one lock, and by one sync of each directory.
_BATCH: Final = 256

#: Seconds for which the lock is waited for, once: whoever has it may be at work for long.
_PATIENCE_S: Final = 10.0

#: Seconds for which two names of one file are left alone: a reader may be at it. Dovecot's DUPE_LINKS_DELETE_SECS.
_LINKS_AGE_S: Final = 30.0


class Repairs:
    """Puts right what is found in one folder.

    Args:
        box: its directories.
        names: where a name comes from for a message that must not have the one it has.
        tell: is given each problem when it is settled.
        links_age_s: seconds for which two names of one file are left alone.
        patience_s: for another's lock.

    """

    def __init__(
        self,
        box: Directories,
        names: UniqueNames,
        tell: Callable[[Problem], None],
        *,
        links_age_s: float = _LINKS_AGE_S,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._box = box
        self._disk = box.disk
        self._names = names
        self._tell = tell
        self._links_age_s = links_age_s
        self._patience_s = patience_s
        self._pending: list[Finding] = []
        self._unsynced = set[str]()

    def add(self, finding: Finding) -> None:
        """Have *finding* put right, with others, by the next `flush` at the latest."""
        self._pending.append(finding)
        if len(self._pending) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Put right what has been added. When this returns that is durable, and each problem has been told of."""
        pending, self._pending = self._pending, []
        settled = list[Problem]()
        moving = [finding for finding in pending if finding.moves]
        if moving:
            settled += self._under_lock(moving)
        for finding in pending:
            if not finding.moves:
                settled += self._change_mode(finding, finding.problems)
        for problem in settled:
            self._tell(problem)

    def _under_lock(self, moving: list[Finding]) -> list[Problem]:
        settled = list[Problem]()
        done = 0
        try:
            with self._locked():
                for finding in moving:
                    settled += self._move(finding)
                    done += 1
                failure = self._sync()
        except OSError as exc:
            failure = ""
            for finding in moving[done:]:
                settled += _refused(finding.problems, exc)
        if failure:
            settled = [_doubted(problem, failure) for problem in settled]
        return settled

    def _move(self, finding: Finding) -> list[Problem]:
        """Give a message the name, and the mode, that it should have."""
        box, renamed = self._box, [each for each in finding.problems if (each.remedy or "").startswith("rename")]
        others = [each for each in finding.problems if each not in renamed]
        # Before it is renamed: by the path that it has been looked at.
        settled = self._change_mode(finding, others)
        source = f"{box.subdirectory(finding.where)}/{finding.name}"
        target = f"{box.subdirectory(finding.new_where)}/{finding.new_name}"
        try:
            warning = self._rename(finding.where, finding.name, finding.new_where, finding.new_name)
        except FileExistsError:
            return settled + [each.settled(f"{target} exists already", repaired=False) for each in renamed]
        except OSError as exc:
            return settled + _refused(renamed, exc)
        outcome = f"renamed {source} to {target}" + (f" ({warning})" if warning else "")
        return settled + [each.settled(outcome, repaired=True) for each in renamed]

    def _rename(self, where: str, name: str, new_where: str, new_name: str) -> str | None:
        disk, box = self._disk, self._box
        source = disk.open_directory(box.subdirectory(where))
        try:
            target = source if where == new_where else disk.open_directory(box.subdirectory(new_where))
            try:
                found = disk.stat(name, source)
                if not stat.S_ISREG(found.st_mode):
                    raise OSError(errno.EINVAL, "it is no regular file any more", name)
                warning = move(disk, name, new_name, source, target)
            finally:
                if target != source:
                    disk.close(target)
        finally:
            disk.close(source)
        self._unsynced |= {box.subdirectory(where), box.subdirectory(new_where)}
        return warning

    def _change_mode(self, finding: Finding, problems: list[Problem]) -> list[Problem]:
        """Take from a message's mode what it has too much; nothing is ever given."""
        disk, path = self._disk, f"{self._box.subdirectory(finding.where)}/{finding.name}"
        mine = [each for each in problems if each.kind == "mode" and each.remedy is not None]
        left = [
            each if each.level == "note" else each.settled("it is left to you", repaired=False)
            for each in problems
            if each not in mine
        ]
        if not mine or finding.mode is None:
            return left
        try:
            fd = disk.open_file(path)
            try:
                mode = stat.S_IMODE(disk.stat(fd).st_mode) & finding.mode
                disk.chmod(fd, mode)
                disk.sync(fd)
            finally:
                disk.close(fd)
        except OSError as exc:
            return left + _refused(mine, exc)
        return left + [each.settled(f"changed its mode to {mode:04o}", repaired=True) for each in mine]

    def separate(self, problem: Problem, first: tuple[str, str], second: tuple[str, str]) -> None:
        """Have two names with one key, each with its directory, be told apart, as Dovecot does it.

        Of two names of one file the second goes. Of two files the second gets a key of its own, with its sizes; what
        others have in it, such as the UID of isync's, is the first one's.
        """
        failure = ""
        try:
            with self._locked():
                settled = self._separate(problem, first, second)
                failure = self._sync()
        except OSError as exc:
            (settled,) = _refused([problem], exc)
        self._tell(_doubted(settled, failure) if failure else settled)

    def _separate(self, problem: Problem, first: tuple[str, str], second: tuple[str, str]) -> Problem:
        disk, box = self._disk, self._box
        here, there = (f"{box.subdirectory(where)}/{name}" for where, name in (first, second))
        one, other = disk.stat(here), disk.stat(there)
        if max(one.st_ctime, other.st_ctime) > time.time() - self._links_age_s:
            text = f"it has changed in the last {self._links_age_s:.0f} s: a reader may be at it"
            return problem.settled(text, repaired=False)
        if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino):
            sync_directory(disk, box.subdirectory(first[0]))  # the name that stays is durable before the other goes
            disk.unlink(there)
            self._unsynced.add(box.subdirectory(second[0]))
            return problem.settled(f"removed the name {there}: {here} is the same file", repaired=True)
        where, name = second
        key, colon, info = name.partition(":")
        fresh = f"{self._names.next()}{sizes_of(key)}{colon}{info}"
        self._rename(where, name, where, fresh)
        return problem.settled(f"renamed {there} to {box.subdirectory(where)}/{fresh}", repaired=True)

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        """Have Dovecot's lock within the block. One that has been waited for in vain is not waited for again."""
        disk, path = self._disk, f"{self._box.path}/dovecot-uidlist"
        mode = files_rights(disk, self._box.path).mode if self._box.inherit_mode else 0o600
        try:
            lock = take(disk, f"{path}.lock", mode, Waiting(self._patience_s), protects=path)
        except OSError as exc:
            if exc.errno == errno.EAGAIN:
                self._patience_s = 0.0
            raise
        try:
            self._box.check_inside()
            yield
        except MaildirError as exc:
            raise OSError(errno.ELOOP, str(exc)) from exc
        finally:
            lock.release()

    def _sync(self) -> str:
        """Sync the directories that have been changed, and return why that failed, or ""."""
        failures = list[str]()
        for path in sorted(self._unsynced):
            try:
                sync_directory(self._disk, path)
            except OSError as exc:
                if exc.errno not in UNSUPPORTED:
                    failures.append(f"{os.path.basename(path)}/ could not be synced: {exc.strerror}")
        self._unsynced.clear()
        return "; ".join(failures)


def _refused(problems: list[Problem], exc: OSError) -> list[Problem]:
    if isinstance(exc, FileNotFoundError):
        text = "it has been moved or removed meanwhile"
    elif exc.errno == errno.EAGAIN:
        text = "another has the lock of the folder (dovecot-uidlist.lock)"
    else:
        text = exc.strerror or str(exc)
    return [each.settled(text, repaired=False) for each in problems]


def _doubted(problem: Problem, failure: str) -> Problem:
    """Return *problem*, which has been put right, but not durably."""
    if not problem.repaired:
        return problem
    return problem.settled(f"{problem.outcome}; a power cut may undo it: {failure}", repaired=True)
