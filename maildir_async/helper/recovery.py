"""What becomes of the messages that were in flight in a helper process that has died. Blocks: for a worker thread.

Nothing of the helper acts any more. A message it had published is finished: its directory is synced, and it counts as
delivered. One that it had not published leaves no trace: if it is whole and in memory it is handed to this process's
own group commit, and what was still being streamed has failed.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterable

from maildir_async.commit.entry import Entry
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.syncing import sync_one
from maildir_async.commit.target import Target
from maildir_async.errors import AppendError, MaildirError
from maildir_async.format.delivered import Durability
from maildir_async.format.names import key_of
from maildir_async.format.read_names import said_sizes
from maildir_async.helper.in_flight import InFlight, Stream, gone_error

__all__ = ["give_up", "recover"]

#: The directories of one disk that have been listed: (path of the maildir, directories) → unique name → path.
Listings = dict[tuple[str, tuple[str, ...]], dict[str, str]]


def recover(lost: Iterable[InFlight]) -> tuple[list[Entry], list[Entry], list[tuple[Stream, MaildirError]]]:
    """Return entries that are to be settled, entries to be delivered anew, and streams that have failed."""
    over: list[Entry] = []
    again: list[Entry] = []
    failed: list[tuple[Stream, MaildirError]] = []
    listings: Listings = {}
    for item in lost:
        entry = item.entry
        try:
            path = _published(item, listings) if entry is not None and item.name else None
            if entry is not None and path is not None:
                try:
                    _remove(item, listings)  # published by a link, and not yet removed
                except OSError as exc:
                    entry.warn(f"the file in tmp/ could not be removed: {exc.strerror or exc}")
                _finish(entry, path)
                over.append(entry)
                continue
            _remove(item, listings)
            if entry is not None and item.stream is None:
                again.append(entry)
                continue
            error: MaildirError = gone_error()
        except BaseException as exc:
            error = _unknown(exc)
        _fail(item, error, over, failed)
    return over, again, failed


def give_up(lost: Iterable[InFlight], exc: BaseException) -> tuple[list[Entry], list[tuple[Stream, MaildirError]]]:
    """Fail all of them for *exc*, by which nobody can look what has become of them."""
    over: list[Entry] = []
    failed: list[tuple[Stream, MaildirError]] = []
    for item in lost:
        _fail(item, _unknown(exc), over, failed)
    return over, failed


def _unknown(exc: BaseException) -> MaildirError:
    """Return the error of a message that may be there or not: to deliver it again here might double it."""
    number = getattr(exc, "errno", None) or errno.EIO
    text = f"the helper process died, and whether it had published the message is not known: {exc}"
    error = AppendError(text, errno=number, stage="publish")
    error.__cause__ = exc
    return error


def _fail(item: InFlight, error: MaildirError, over: list[Entry], failed: list[tuple[Stream, MaildirError]]) -> None:
    if item.entry is not None:
        item.entry.error = error
        item.entry.chunks = b""
        over.append(item.entry)
    elif item.stream is not None:
        failed.append((item.stream, error))


def _published(item: InFlight, listings: Listings) -> str | None:
    """Return the path of the message, wherever a mail reader may have put it meanwhile; None if it is not there."""
    directories = item.mailbox.directories
    return _found(item.name, item.mailbox, (directories.new, directories.cur), listings)


def _remove(item: InFlight, listings: Listings) -> None:
    """Remove its file in ``tmp/``, if there is one. OSError if that cannot be done, or seen."""
    if not item.tmp_name:  # it was never handed over
        return
    directories = item.mailbox.directories
    path = _found(item.tmp_name, item.mailbox, (directories.tmp,), listings)
    if path is not None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            directories.disk.unlink(path)


def _found(name: str, mailbox: Mailbox, places: tuple[str, ...], listings: Listings) -> str | None:
    """Return the path of the file whose name begins with the unique *name*.

    The only listings there are outside of index() and clean_tmp(): the names end with sizes and flags.
    """
    directories = mailbox.directories
    found = listings.get((directories.path, places))
    if found is None:
        found = listings[directories.path, places] = {
            re.split("[,:]", name, maxsplit=1)[0]: f"{place}/{name}"
            for place in places
            for name in _listed(mailbox, place)
        }
    return found.get(name)


def _listed(mailbox: Mailbox, place: str) -> list[str]:
    try:
        return mailbox.directories.disk.listdir(place)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sizes_in(path: str) -> tuple[int, int] | None:
    """Return both sizes that the name of a message says; a directory's, which may be called anything, says none."""
    said = said_sizes(key_of(os.path.basename(path)))
    size, wire_size = (said.get(letter, [None])[-1] for letter in "SW")
    return None if size is None or wire_size is None else (size, wire_size)


def _finish(entry: Entry, path: str) -> None:
    """Take a message that is published through what the helper may not have done any more."""
    directories = entry.mailbox.directories
    sizes = _sizes_in(path)
    if sizes is not None:
        entry.size, entry.wire_size = sizes
    else:  # a reader has dropped them
        entry.size = entry.wire_size = directories.disk.stat(path).st_size
    entry.chunks = b""
    entry.path, entry.name = path, key_of(os.path.basename(path))
    if entry.plan.durability is not Durability.FULL:
        return
    try:
        target = Target(directories, os.path.dirname(path))
    except OSError as exc:
        entry.directory_failed(exc)
        return
    target.entries.append(entry)
    sync_one(target)
    target.sync_above()
    target.close()
