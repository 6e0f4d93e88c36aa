"""A whole message goes into ``tmp/``: what takes more than a call each of create and write. Blocks."""

import errno

from maildir_async.commit.entry import Entry
from maildir_async.disk.calls import write_all
from maildir_async.disk.streamfile import NAME_TRIES, converted
from maildir_async.format.content import Content

__all__ = ["complete_stream", "convert", "create", "write_rest"]


def convert(entry: Entry) -> bytes:
    """Return what is to be stored: its prefix, and its bytes with the line ends asked for."""
    plan, chunks = entry.plan, entry.chunks
    given = chunks if isinstance(chunks, bytes) else b"".join(chunks)
    if plan.as_given:
        return given
    content = Content(prefix=plan.prefix, newline=plan.newline)
    return converted(content, given) + content.end()


def create(entry: Entry) -> int:
    """Make its file in ``tmp/``, by path, and first whatever is missing of the maildir; return the descriptor."""
    directories, made = entry.mailbox.directories, False
    for _ in range(NAME_TRIES):
        try:
            entry.fd = directories.disk.create(f"{directories.tmp}/{entry.name}", entry.mailbox.mode)
        except FileExistsError:
            rename(entry)
        except (FileNotFoundError, NotADirectoryError):
            if made:
                raise
            made = True
            for warning in directories.make_missing():
                entry.warn(warning)
        else:
            entry.tmp_name = entry.name
            return entry.fd
    raise OSError(errno.EEXIST, "no free name in tmp/")


def rename(entry: Entry) -> None:
    """Give it another name: there is a file that has this one."""
    entry.name = f"{entry.mailbox.names.next()},S={entry.size},W={entry.wire_size}"


def write_rest(entry: Entry, data: bytes, written: int) -> None:
    """Go on after a write that was short."""
    if written <= 0:
        raise OSError(errno.EIO, "write made no progress")
    write_all(entry.mailbox.directories.disk, entry.fd, data[written:])


def complete_stream(entry: Entry) -> None:
    """Write the last of a message whose file there is already, and take that over."""
    file = entry.file
    assert file is not None
    entry.stage = "write"
    tmp_name = file.name
    entry.tmp_name = tmp_name  # before it is the stream's no more: a sweeper has to know whose it is
    chunks = entry.chunks
    entry.fd = file.complete((chunks,) if isinstance(chunks, bytes) else chunks)
    entry.chunks = b""
    for member in entry.family:
        member.size, member.wire_size = file.content.size, file.content.wire_size
        member.name = f"{member.name},S={member.size},W={member.wire_size}"
