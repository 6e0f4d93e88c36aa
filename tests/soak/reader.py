"""The mail reader: it finds each message, checks it, moves it to ``cur/``, and deletes it when it is old."""

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Final

from .mail import is_whole, number_of

__all__ = ["Reader"]

#: Seconds that a message is kept, so that an index and a watch have something to see.
KEPT_S: Final = 10.0

#: Seconds for which a maildir that was moved away is looked at: what was on its way into it has come by then.
MOVED_S: Final = 20.0

#: Seconds for which a message is kept of which nothing has been told: a delivery may take as long as a disk hangs.
UNTOLD_S: Final = 200.0

Key = tuple[str, int]


class Reader:
    """What is known of the messages: what was told of each, and how often each was seen.

    Args:
        root: where the maildirs are.
        notes: the program's.

    """

    def __init__(self, root: Path, notes: Path) -> None:
        self.root = root
        self._notes = notes
        self._offset = 0
        self._told: dict[Key, str] = {}
        self._found: Counter[Key] = Counter()
        self._known: set[tuple[str, str]] = set()
        self._old: deque[tuple[float, str, Key]] = deque()
        self._moved: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def fault(self, what: str) -> None:
        """Note that something is wrong."""
        self.counts["faults"] += 1
        if len(self.faults) < 100:
            self.faults.append(what)

    def read_notes(self) -> None:
        """Take in what has been told since the last time."""
        if not self._notes.exists():
            return
        with open(self._notes, "rb") as file:
            file.seek(self._offset)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._offset += len(text)
        for line in text.splitlines():
            outcome, name, number = line.decode().split()
            key = (name, int(number))
            if key in self._told:
                self.fault(f"{name} {number} was told twice: {self._told[key]} {outcome}")
            self._told[key] = outcome
            self.counts[outcome] += 1

    def look(self) -> None:
        """Look through all maildirs once, and delete what is old."""
        self.read_notes()
        for box in self._boxes():
            self._look_into(box)
        now = time.monotonic()
        while self._old and self._old[0][0] < now - KEPT_S:
            _, path, key = self._old[0]
            if key not in self._told and self._old[0][0] > now - UNTOLD_S:
                break  # what became of it has not been told yet
            try:
                os.unlink(path)
            except FileNotFoundError:
                self._old.popleft()
                if key[0] != "gone":  # it was moved away with its maildir, and is dropped with that
                    self.fault(f"{path} has gone by itself")
                continue
            except OSError:
                break  # read-only now
            self._old.popleft()
            self._known.discard((key[0], os.path.basename(path).partition(":")[0]))
            self.counts["removed"] += 1
            if key[0] == "quota":
                self._give_back(path)
        for moved, since in list(self._moved.items()):
            if since < now - MOVED_S:
                self._drop(Path(moved))

    def _give_back(self, path: str) -> None:
        """Tell the quota that a message has gone, as a mail reader has to."""
        size = path.partition(",S=")[2].partition(",")[0].partition(":")[0]
        with contextlib.suppress(OSError):
            fd = os.open(self.root / "quota" / "maildirsize", os.O_WRONLY | os.O_APPEND)
            try:
                os.write(fd, f"-{size} -1\n".encode())
            finally:
                os.close(fd)

    def _drop(self, moved: Path) -> None:
        """Remove a maildir that was moved away, once all in it has been looked at. It may be a part of one."""
        with contextlib.suppress(FileNotFoundError):
            # What was being written then went with its maildir: by its path nobody can reach it any more.
            self.counts["moved away in tmp/"] += len(os.listdir(moved / "tmp"))
        for where in ("new", "cur"):
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(moved / where):
                    if ("gone", name.partition(":")[0]) not in self._known:
                        return  # one that has come only now: the next look meets it
        try:
            shutil.rmtree(moved)
        except OSError:
            return  # read-only now
        del self._moved[str(moved)]
        kept: deque[tuple[float, str, Key]] = deque()
        for each in self._old:
            if each[1].startswith(f"{moved}/"):
                self._known.discard(("gone", os.path.basename(each[1]).partition(":")[0]))
            else:
                kept.append(each)
        self._old = kept

    def _boxes(self) -> list[Path]:
        boxes = []
        for entry in os.scandir(self.root):
            if entry.is_dir() and entry.name != "lost+found":
                boxes.append(Path(entry.path))
                if entry.name.startswith("gone."):
                    self._moved.setdefault(entry.path, time.monotonic())
                with contextlib.suppress(FileNotFoundError):
                    boxes += [Path(sub.path) for sub in os.scandir(entry.path) if sub.name.startswith(".")]
        return [box for box in boxes if box.is_dir()]

    def _look_into(self, box: Path) -> None:
        name = box.relative_to(self.root).parts[0].partition(".")[0]
        for where in ("new", "cur"):
            try:
                listed = os.listdir(box / where)
            except FileNotFoundError:
                continue
            for entry in listed:
                path = f"{box}/{where}/{entry}"
                if (name, entry.partition(":")[0]) not in self._known:
                    self._meet(box, name, where, entry, path)

    def _meet(self, box: Path, name: str, where: str, entry: str, path: str) -> None:
        try:
            stored = Path(path).read_bytes()
        except FileNotFoundError:
            return  # moved away between listing and reading; or lost, and then the end tells
        except OSError as exc:
            self.fault(f"{path}: {exc}")
            return
        number, _ = number_of(stored)
        key = (name, number)
        if not is_whole(stored):
            self.fault(f"{path} is not whole: {len(stored)} bytes, number {number}")
        if where == "new":
            seen = f"{box}/cur/{entry}:2,S"
            try:
                os.rename(path, seen)
            except OSError:
                return  # read-only, or moved away: it is met again
            path = seen
        self._known.add((name, entry.partition(":")[0]))  # a maildir that is moved away keeps what is in it
        self._found[key] += 1
        self._old.append((time.monotonic(), path, key))
        self.counts["met"] += 1
        if self._found[key] > 1:
            self.fault(f"{name} {number} is there twice: {path}")
        if self._told.get(key) == "R":
            self.fault(f"{name} {number} was refused, and is there: {path}")

    def finish(self) -> None:
        """Hold what was found against what was told, when nobody delivers any more."""
        for _ in range(3):
            self.look()
        for key, outcome in self._told.items():
            if outcome in "AU" and not self._found[key]:
                self.fault(f"{key[0]} {key[1]} was told as {outcome}, and was never there")
        for key in self._found:
            if key not in self._told:
                self.fault(f"{key[0]} {key[1]} is there, and nothing was told of it")
            elif self._told[key] == "R":
                self.fault(f"{key[0]} {key[1]} was refused, and was there")
        for box in self._boxes():
            if str(box) in self._moved:
                continue
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(box / "tmp"):
                    self.fault(f"{box}/tmp has {name}")
        self.counts["cancelled, and there"] = sum(
            bool(self._found[key]) for key, outcome in self._told.items() if outcome == "C"
        )


def main() -> int:
    """Read until standard input ends; then print the verdict as lines of JSON."""
    reader = Reader(Path(sys.argv[1]), Path(sys.argv[2]))
    over = threading.Event()

    def listen() -> None:
        sys.stdin.buffer.read()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    while not over.wait(0.5):
        reader.look()
    reader.finish()
    print(json.dumps({"counts": reader.counts, "faults": reader.faults}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
