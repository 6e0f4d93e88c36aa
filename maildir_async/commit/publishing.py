"""A written message becomes visible: what takes more than a close and a rename. Blocks."""

import errno

from maildir_async.commit.entry import Entry
from maildir_async.commit.target import Target
from maildir_async.commit.writing import rename
from maildir_async.disk.calls import UNLINKABLE
from maildir_async.disk.publishing import move, put_link
from maildir_async.disk.streamfile import NAME_TRIES

__all__ = ["publish", "wants_copy"]


def publish(entry: Entry, path: str, target: Target | None) -> Target:
    """Publish *entry* in the directory at *path*; return the target it is in, *target* or one that has been opened.

    What is synced is what was changed: the directory is opened before. One that turns out to be gone is made anew,
    and another target takes its place.
    """
    found = target
    try:
        _close_file(entry)
        entry.stage = "publish"
        if found is None:
            found = Target.found(entry.mailbox.directories, path)
        try:
            _give_name(entry, path, found)
        except FileNotFoundError:
            if found is not target:
                found.close()
            found = target
            found = Target.found(entry.mailbox.directories, path)
            _give_name(entry, path, found)
    except BaseException:
        if found is not None and found is not target:
            found.close()
        raise
    entry.target = found.identity
    return found


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
        name = f"{entry.name}:2,{entry.plan.flags}" if entry.plan.flags else entry.name
        try:
            if entry.source is not None:
                put_link(disk, _path_of(entry.source), name, target.fd, entry.source.reserve_fd)
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
    """Whether *link* has failed where a copy may not."""
    if link.error is None or link.fell_with_source:
        return False
    return link.error.stage == "publish" and link.error.errno in UNLINKABLE
