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
from maildir_async.commit.target import Target
from maildir_async.disk.directories import Directories
from maildir_async.errors import AppendError, MaildirError
from maildir_async.format.delivered import Durability
from maildir_async.helper.channel import InFlight, Stream

__all__ = ["give_up", "recover"]


def recover(lost: Iterable[InFlight]) -> tuple[list[Entry], list[Entry], list[tuple[Stream, MaildirError]]]:
    """Return entries that have their outcome, entries to be delivered anew, and streams that have failed."""
    settled: list[Entry] = []
    again: list[Entry] = []
    failed: list[tuple[Stream, MaildirError]] = []
    listings: dict[str, dict[str, str]] = {}
    for item in lost:
        entry = item.entry
        try:
            if entry is not None and item.name:
                path = _published(item.name, entry.tmpfile.directories, listings)
                if path is not None:
                    try:
                        _remove(item)  # published by a link, and not yet removed
                    except OSError as exc:
                        entry.tmpfile.warnings.append(f"the file in tmp/ could not be removed: {exc.strerror or exc}")
                    _finish(entry, path)
                    settled.append(entry)
                    continue
            _remove(item)
            if entry is not None and item.stream is None:
                again.append(entry)
                continue
            error: MaildirError = AppendError("the helper process died", errno=errno.EPIPE, stage="receive")
        except BaseException as exc:
            error = _unknown(exc)
        _fail(item, error, settled, failed)
    return settled, again, failed


def give_up(lost: Iterable[InFlight], exc: BaseException) -> tuple[list[Entry], list[tuple[Stream, MaildirError]]]:
    """Fail all of them for *exc*, by which nobody can look what has become of them."""
    settled: list[Entry] = []
    failed: list[tuple[Stream, MaildirError]] = []
    for item in lost:
        _fail(item, _unknown(exc), settled, failed)
    return settled, failed


def _unknown(exc: BaseException) -> MaildirError:
    """Return the error of a message that may be there or not: to deliver it again here might double it."""
    number = getattr(exc, "errno", None) or errno.EIO
    text = f"the helper process died, and whether it had published the message is not known: {exc}"
    error = AppendError(text, errno=number, stage="publish")
    error.__cause__ = exc
    return error


def _fail(item: InFlight, error: MaildirError, settled: list[Entry], failed: list[tuple[Stream, MaildirError]]) -> None:
    if item.entry is not None:
        item.entry.error = error
        item.entry.answered()
        settled.append(item.entry)
    elif item.stream is not None:
        failed.append((item.stream, error))


def _published(name: str, directories: Directories, listings: dict[str, dict[str, str]]) -> str | None:
    """Return the path of the message with the unique *name*, wherever a mail reader may have put it meanwhile."""
    found = listings.get(directories.path)
    if found is None:
        # The only listing there is outside of index() and clean_tmp(): the name ends with sizes and flags.
        found = listings[directories.path] = {
            re.split("[,:]", entry, maxsplit=1)[0]: f"{place}/{entry}"
            for place in (directories.new, directories.cur)
            for entry in _listed(directories, place)
        }
    return found.get(name)


def _listed(directories: Directories, place: str) -> list[str]:
    try:
        return directories.disk.listdir(place)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _finish(entry: Entry, path: str) -> None:
    """Take a message that is published through what the helper may not have done any more."""
    tmpfile = entry.tmpfile
    sizes = re.search(r",S=(\d+),W=(\d+)", path)
    if sizes is not None:
        tmpfile.content.size, tmpfile.content.wire_size = map(int, sizes.groups())
    else:  # a reader has dropped them
        tmpfile.content.size = tmpfile.content.wire_size = tmpfile.directories.disk.stat(path).st_size
    tmpfile.adopt(path)
    if tmpfile.durability is Durability.FULL:
        target = Target(entry)
        target.entries.append(entry)
        try:
            target.open()
        except OSError as exc:
            entry.directory_synced(exc, ())
        sync_now(target)
    entry.conclude()


def _remove(item: InFlight) -> None:
    tmpfile = item.entry.tmpfile if item.entry is not None else item.stream.tmpfile if item.stream is not None else None
    if tmpfile is not None and item.tmp_name:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            tmpfile.directories.disk.unlink(os.path.join(tmpfile.directories.tmp, item.tmp_name))
