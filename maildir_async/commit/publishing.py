"""PUBLISH, the third step of a round: each message becomes visible. Blocks."""

import errno
from collections import deque
from typing import Final

from maildir_async.commit.batch import PUBLISH, Batch, Hand, LeftBehind, hold
from maildir_async.commit.entry import Entry
from maildir_async.commit.syncing import DirectorySyncing
from maildir_async.commit.target import Roots, Target
from maildir_async.commit.writing import give_letters, rename
from maildir_async.disk.calls import OUT_OF_DESCRIPTORS, UNLINKABLE
from maildir_async.disk.publishing import move, put_link
from maildir_async.disk.streamfile import NAME_TRIES
from maildir_async.format.delivered import Durability

__all__ = ["Publishing", "publish", "wants_copy"]

#: Directories that a round holds open at once. With more, what has been published is synced before it goes on.
MOST_OPEN: Final = 128


class Publishing:
    """The step, for one batch.

    Args:
        batch: the messages.
        directories: the step after this: it is worked on in between where too many directories are open.

    """

    def __init__(self, batch: Batch, directories: DirectorySyncing) -> None:
        self._batch = batch
        self._directories = directories
        self._todo: deque[Entry] | None = None

    def work(self, hand: Hand) -> None:
        """Have each message in its directory, from where another driver has left off."""
        todo = self._todo
        if todo is None:
            todo = self._todo = deque(self._batch.entries)
        targets, tmps, roots = self._batch.targets, self._batch.tmps, self._batch.roots
        while todo:
            entry = todo.popleft()
            if entry.error is not None:
                continue
            directories, plan = entry.mailbox.directories, entry.plan
            disk, path = directories.disk, directories.cur if entry.flags else directories.new
            target = found = targets.get((disk, path))
            if target is None and len(self._batch.opened) >= MOST_OPEN:
                todo.appendleft(entry)  # for whoever drives on, if this thread does not
                self._directories.work(hand)
                todo.popleft()
                targets = self._batch.targets
            hand[entry] = None
            failure: BaseException | None = None
            try:
                if entry.reserved >= 0 and entry.mailbox.quota is not None:
                    entry.mailbox.quota.about_to_publish(entry)
                if plan.held:
                    _close_file(entry)
                    hold(entry)
                elif entry.flags or entry.source is not None or entry.links:
                    found = publish(entry, path, target, roots)
                else:
                    name = entry.name
                    fd, entry.fd, entry.stage = entry.fd, -1, "close"
                    if fd >= 0:  # or this is another try
                        disk.close(fd)
                    entry.stage = "publish"
                    if found is None:  # opened before: what is synced is what was changed
                        found = Target.found(directories, path, roots)
                    tmp = tmps.get((disk, directories.tmp))
                    try:
                        if tmp is None or tmp.fd is None:
                            warning = move(disk, f"{directories.tmp}/{entry.tmp_name}", name, None, found.fd)
                        else:
                            warning = move(disk, entry.tmp_name, name, tmp.fd, found.fd)
                    except (FileExistsError, FileNotFoundError):
                        first, found = found, publish(entry, path, found, roots)
                        if first is not found and first is not target:
                            first.close()  # nothing is in it
                    else:
                        if warning is not None:
                            entry.warn(warning)
                        entry.directory_id = found.identity
                        entry.tmp_name = ""
                        entry.path = f"{path}/{name}"
            except BaseException as exc:
                failure = exc
            is_crowded = isinstance(failure, OSError) and failure.errno in OUT_OF_DESCRIPTORS
            is_crowded = is_crowded and bool(self._batch.opened)  # of which some can be closed
            if failure is not None and not is_crowded:
                entry.fail(failure)
            try:
                del hand[entry]
            except KeyError:
                if found is not None and found is not target:
                    found.close()
                if is_crowded and failure is not None:
                    entry.fail(failure)
                raise LeftBehind(entry, PUBLISH) from None
            self._batch.moves += 1
            if is_crowded:  # close those directories, and have another try
                todo.appendleft(entry)
                self._directories.work(hand)
                targets = self._batch.targets
            if found is not target and found is not None:
                targets[disk, path] = found
                self._batch.opened.append(found)
            if entry.path and plan.durability is Durability.FULL and found is not None:
                found.entries.append(entry)


def publish(entry: Entry, path: str, target: Target | None, roots: Roots) -> Target:
    """Publish *entry* in the directory at *path*; return the target it is in, *target* or one that has been opened.

    What is synced is what was changed: the directory is opened before. One that turns out to be gone is made anew,
    and another target takes its place.
    """
    found = target
    try:
        _close_file(entry)
        if entry.refusal is not None:
            if entry.reserve_fd >= 0:
                _end_links(entry)
            entry.stage = "create"
            raise entry.refusal
        entry.stage = "publish"
        if found is None:
            found = Target.found(entry.mailbox.directories, path, roots)
        _look_at_letters(entry)
        try:
            _give_name(entry, path, found)
        except FileNotFoundError:
            if found is not target:
                found.close()
            found = target
            found = Target.found(entry.mailbox.directories, path, roots)
            _look_at_letters(entry)
            _give_name(entry, path, found)
    except BaseException:
        if found is not None and found is not target:
            found.close()
        raise
    entry.directory_id = found.identity
    return found


def _look_at_letters(entry: Entry) -> None:
    """Have the letters of a link defined, which may have gone with its maildir: that is there again by now, if it has.

    A message that is no link has its file there, so that it would be gone as well.
    """
    if entry.source is not None and entry.plan.keywords:
        give_letters(entry)
        entry.stage = "publish"


def _close_file(entry: Entry) -> None:
    """Close its file before it is published: some file systems report a lost write only here (close(2)).

    Where there are links, a second descriptor stays open, by which they can be made, or copies.
    """
    source = entry.source or entry
    if source.fd < 0:
        return
    disk = source.mailbox.directories.disk
    source.stage = "close"
    if source.links:
        source.reserve_fd = disk.duplicate(source.fd)
    fd, source.fd = source.fd, -1
    try:
        disk.close(fd)
    except BaseException as exc:
        source.fail(exc)
        raise


def _give_name(entry: Entry, path: str, target: Target) -> None:
    disk = entry.mailbox.directories.disk
    if entry.links and entry.reserve_fd >= 0:
        _end_links(entry)
    for _ in range(NAME_TRIES):
        name = f"{entry.name}:2,{entry.flags}" if entry.flags else entry.name
        try:
            if entry.source is not None:
                fd = entry.reserve_fd if entry.reserve_fd >= 0 else entry.source.reserve_fd
                put_link(disk, _path_of(entry.source), name, target.fd, fd)
            elif warning := move(disk, f"{entry.mailbox.directories.tmp}/{entry.tmp_name}", name, None, target.fd):
                entry.warn(warning)
        except FileExistsError:
            rename(entry)
            continue
        entry.tmp_name = ""
        entry.path = f"{path}/{name}"
        return
    raise OSError(errno.EEXIST, f"no free name in {path}")


def _path_of(source: Entry) -> str:
    """Return where a message is by now that others are linked to."""
    return f"{source.mailbox.directories.tmp}/{source.tmp_name}" if source.tmp_name else source.path


def _end_links(entry: Entry) -> None:
    """All links to *entry* have been tried: keep its file open for those that have to be copied, if there are any."""
    disk, fd = entry.mailbox.directories.disk, entry.reserve_fd
    entry.reserve_fd = -1
    if any(map(wants_copy, entry.links)):
        entry.copy = disk.reader(fd)
    else:
        disk.close(fd)


def wants_copy(link: Entry) -> bool:
    """Whether *link* has failed in a way that a copy of the file may not."""
    if link.error is None or link.fell_with_source:
        return False
    return link.error.stage == "publish" and link.error.errno in UNLINKABLE
