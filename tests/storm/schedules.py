"""Schedules: what they are made of, and how one is drawn from a seed."""

import errno
import random
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

__all__ = ["Schedule", "Step", "draw", "step"]


class Step(NamedTuple):
    """One thing that happens.

    Attributes:
        kind: what; `world` comes first, and says what there is.
        what: the arguments of that kind.

    """

    kind: str
    what: dict[str, Any]

    def __repr__(self) -> str:
        return f"step({', '.join([repr(self.kind), *(f'{name}={value!r}' for name, value in self.what.items())])})"


Schedule = Sequence[Step]


def step(kind: str, **what: Any) -> Step:
    """Return a step, as a schedule that is printed has them."""
    return Step(kind, what)


#: Bytes of messages: short ones, and some of more than a chunk, which have a file while they come.
_SIZES: Final = (20, 20, 400, 5000, 600_000)
_FOLDERS: Final = (None, None, None, "x", "x/y")

#: How a message comes that is not whole at once.
_STREAMS: Final = ("hand", "push", "pull", "iterable")

#: Calls that fail, and as what.
_FAILING: Final = (
    *("create", "write", "sync", "sync", "sync", "close", "rename_noreplace", "rename_noreplace", "link", "unlink"),
    *("open_directory", "stat", "identity", "mkdir", "utime", "open_file", "read", "listdir", "link_open", "duplicate"),
)
_ERRORS: Final = (errno.EIO, errno.EIO, errno.ENOSPC, errno.EACCES, errno.EMFILE, errno.EINVAL)

#: Calls that hang, or are slow.
_HANGING: Final = (
    *("create", "write", "sync", "sync", "close", "rename_noreplace", "rename_noreplace", "link", "open_directory"),
    *("unlink", "stat", "identity", "mkdir", "link_open", ""),
)

#: Whose work is done, and who then says that it has failed. (Of a call that opens something nobody could close that.)
_LATE: Final = ("sync", "write", "close", "rename_noreplace", "link", "unlink")


class _Drawing:
    """The state of drawing one schedule."""

    def __init__(self, seed: int, *, helper: bool) -> None:
        self.dice = random.Random(seed)
        self.messages = 0
        self.deliveries = list[int]()
        self.streams = list[int]()
        self.gates = list[int]()
        self.others = list[int]()
        self.helper = helper
        self.boxes = self.dice.choice([1, 2, 2, 3])
        self.filters = not helper and self.dice.random() < 0.15
        self.quota = self.dice.choice([None, None, None, None, 4, 1000])

    def world(self) -> Step:
        """Return what there is."""
        dice = self.dice
        what: dict[str, Any] = {"boxes": self.boxes}
        if dice.random() < 0.7:
            what["made"] = True
        if self.quota is not None:
            what["quota"] = self.quota
        if self.filters:
            what["filters"] = True
        if dice.random() < 0.15:
            what["max_pending"] = dice.choice([1, 2, 3])
            what["wait"] = dice.random() < 0.7
        if self.helper:
            what["helper"] = True
        elif dice.random() < 0.15:
            what["syncfs"] = True
        elif dice.random() < 0.15:
            what["kernel"] = True
        if dice.random() < 0.3:
            what["commits"] = 2
        return step("world", **what)

    def next(self) -> list[Step]:
        """Return the next steps."""
        kinds: dict[str, float] = {"append": 6, "task": 2, "stream": 3, "many": 2, "fan_out": 2, "run": 6}
        kinds |= {"read": 1, "remove": 1, "sweep": 1, "close": 0.4, "aclose": 0.3, "fork": 0.25, "other": 0.25}
        if self.deliveries:
            kinds["cancel"] = 4
        if self.streams:
            kinds["feed"] = 8
        if not self.helper:
            kinds |= {"fault": 3, "hang": 3, "slow": 0.7, "shorten": 1, "heal": 0.7}
            if self.gates:
                kinds["open"] = 2
        else:
            kinds["kill_helper"] = 1.5
        if self.others:
            kinds["kill"] = 1
        kind = self.dice.choices(list(kinds), list(kinds.values()))[0]
        made: Step | list[Step] = getattr(self, f"_{kind}", lambda: step(kind))()
        return [made] if isinstance(made, Step) else made

    def _numbers(self, count: int = 1) -> list[int]:
        self.messages += count
        return [*range(self.messages - count, self.messages)]

    def _options(self, **what: Any) -> dict[str, Any]:
        dice = self.dice
        if dice.random() < 0.25:
            what["loop"] = 1
        if (folder := dice.choice(_FOLDERS)) is not None:
            what["folder"] = folder
        if dice.random() < 0.1:
            what["keywords"] = [dice.choice(["k", "j", "$Forwarded"])]
        elif dice.random() < 0.1:
            what["flags"] = "S"
        if dice.random() < 0.15:
            what["durability"] = dice.choice(["FILE", "NONE"])
        if self.filters and dice.random() < 0.6:
            what["key"] = dice.choice("ab")
        if (guard := dice.choice([None, None, "scope", "timeout"])) is not None:
            what["guard"] = guard
        return what

    def _box(self) -> int:
        return self.dice.randrange(self.boxes)

    def _one(self, kind: str) -> list[Step]:
        """Return one delivery of that kind, or several at once: they make a batch together."""
        made = list[Step]()
        for _ in range(self.dice.choice([1, 1, 2, 4])):
            (number,) = self._numbers()
            self.deliveries.append(number)
            made.append(step(kind, number=number, box=self._box(), size=self.dice.choice(_SIZES), **self._options()))
        return made

    def _append(self) -> list[Step]:
        return self._one("append")

    def _task(self) -> list[Step]:
        return self._one("task")

    def _stream(self) -> Step:
        (number,) = self._numbers()
        self.deliveries.append(number)
        self.streams.append(number)
        how, size = self.dice.choice(_STREAMS), self.dice.choice((*_SIZES, 1_500_000))
        return step("stream", number=number, box=self._box(), size=size, how=how, **self._options())

    def _feed(self) -> Step:
        end = self.dice.choices(["", "end", "raise", "fail"], [6, 4, 1, 0.5])[0]
        number = self.dice.choice(self.streams[-3:])
        return step("feed", number=number, end=end) if end else step("feed", number=number)

    def _many(self) -> Step:
        numbers = self._numbers(self.dice.choice([2, 3, 6]))
        self.deliveries.append(numbers[0])
        what = self._options(numbers=numbers, box=self._box(), size=self.dice.choice(_SIZES))
        if self.dice.random() < 0.5:
            what["atomic"] = True
            what.pop("key", None)
        return step("many", **what)

    def _fan_out(self) -> Step:
        (number,) = self._numbers()
        self.deliveries.append(number)
        return step("fan_out", number=number, size=self.dice.choice(_SIZES), **self._options())

    def _cancel(self) -> Step:
        how = self.dice.choice(["native", "again", "guard"])
        return step("cancel", number=self.dice.choice(self.deliveries[-6:]), how=how)

    def _run(self) -> Step:
        turns = self.dice.choice([1, 2, 3, 8])
        return step("run", turns=turns) if self.dice.random() < 0.6 else step("rest")

    def _read(self) -> Step:
        return step("read", box=self._box())

    def _remove(self) -> Step:
        return step("remove", box=self._box(), count=self.dice.choice([1, 2, 9]))

    def _sweep(self) -> Step:
        return step("sweep", box=self._box())

    def _aclose(self) -> Step:
        return step("aclose", box=self._box())

    def _close(self) -> Step:
        return step("close", loop=self.dice.choice([0, 1, 1]))

    def _fork(self) -> Step:
        return step("fork", numbers=self._numbers(2), box=self._box())

    def _other(self) -> Step:
        numbers = self._numbers(4)
        self.others.append(numbers[0])
        return step("other", numbers=numbers, box=self._box())

    def _kill(self) -> Step:
        return step("kill", number=self.dice.choice(self.others))

    def _fault(self) -> Step:
        dice = self.dice
        operation = dice.choice(_FAILING)
        # A file or directory that is said to be gone is: other calls may not tell otherwise.
        errors = (*_ERRORS, errno.ENOENT) if operation in ("create", "rename_noreplace", "link") else _ERRORS
        what: dict[str, Any] = {"operation": operation, "error": errno.errorcode[dice.choice(errors)]}
        what["nth"] = dice.choice([1, 1, 1, 2, 3, 6])
        if dice.random() < 0.15:
            what["nth"] = 0
        if operation in _LATE and dice.random() < 0.3:
            what["late"] = True
        if dice.random() < 0.3:
            what["path"] = dice.choice(["/b0/", "/new", "/tmp", "/cur", "/.x"])
        return step("fault", **what)

    def _hang(self) -> Step:
        number = len(self.gates)
        self.gates.append(number)
        what: dict[str, Any] = {"number": number, "operation": self.dice.choice(_HANGING)}
        what["nth"] = self.dice.choice([1, 1, 2, 3, 7])
        if self.dice.random() < 0.2:
            what["path"] = self.dice.choice(["/b0", "/new", "/tmp"])
        if self.dice.random() < 0.2:
            what["error"] = "EIO"
        return step("hang", **what)

    def _open(self) -> Step:
        return step("open", number=self.dice.choice(self.gates))

    def _slow(self) -> Step:
        return step("slow", operation=self.dice.choice(["write", "sync", "rename_noreplace", "create"]))

    def _shorten(self) -> Step:
        return step("shorten", nth=self.dice.choice([1, 2, 4]), to=self.dice.choice([1, 7, 4096]))


def draw(seed: int, *, helper: bool = False) -> list[Step]:
    """Return the schedule of that *seed*: the same in each run, and with each version of Python."""
    drawing = _Drawing(seed, helper=helper)
    schedule = [drawing.world()]
    for _ in range(drawing.dice.choice([4, 8, 12, 18, 26])):
        schedule += drawing.next()
    return schedule
