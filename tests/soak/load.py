"""What the program does to the library: a delivery of each kind, and what can be planted to see it found."""

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from maildir_async import (
    Delivered,
    GroupCommit,
    Maildir,
    MaildirError,
    Quota,
    UncertainAppendError,
    deliver,
)
from maildir_async.testing import FaultDisk

from .mail import Notes, message
from .measure import Journal

__all__ = ["PLANTS", "Load"]

#: What can be planted, for the rig's own test.
PLANTS: Final = ("descriptor", "thread", "memory", "task", "object", "loss", "torn", "twice")


class Load:
    """The maildirs, and what is done to each. What became of each message is noted."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.root: Path = options.root
        self.options = options
        self.journal = Journal(options.work / "journal")
        self.notes = Notes(str(options.work / "notes"))
        self.ends = asyncio.Event()
        self.calm = True
        self.look_s = min(3.0, options.seconds / 60)  # for which an index or a watch is held
        self.numbers = itertools.count(1)
        self.dice = random.Random(options.seed)
        self.disk = FaultDisk()
        self.helper = GroupCommit(helper_process=True)
        self.planted: list[Any] = []
        root = self.root
        self.maildirs = {
            name: Maildir(root / name) for name in ("plain", "streams", "team1", "team2", "team3", "many", "hasty")
        }
        self.maildirs |= {
            "folders": Maildir(root / "folders"),
            "keywords": Maildir(root / "keywords"),
            "quota": Maildir(root / "quota", quota=Quota(bytes=2 * 2**20, messages=400)),
            "helper": Maildir(root / "helper", commit=self.helper),
            "bad": Maildir(root / "bad", disk=self.disk),
            "gone": Maildir(root / "gone"),
            "fed": Maildir(root / "fed"),
            "forked": Maildir(root / "forked"),
            "smtp": Maildir(root / "smtp"),
        }
        #: Deliveries a second of each kind, before `--rate` is applied.
        self.kinds: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "whole": (70, self.whole),
            "stream": (8, self.stream),
            "folder": (20, self.folder),
            "keywords": (10, self.keywords),
            "quota": (15, self.quota),
            "fan-out": (5, self.fan_out),
            "many": (1, self.many),
            "hasty": (12, self.hasty),
            "fed": (5, self.fed),
            "aborted": (5, self.aborted),
            "helper": (20, self.through_helper),
            "bad disk": (12, self.bad_disk),
            "gone": (12, self.gone),
            "smtp": (6, self.smtp),
            "fork": (0.1, self.fork),
            "clean": (0.1, self.clean),
            "index": (0.2, self.index),
            "watch": (0.2, self.watch),
        }
        self.server: asyncio.Server | None = None

    # One of each kind.

    async def one(self, kind: str, name: str, number: int, call: Awaitable[Delivered]) -> Delivered | None:
        """Await a delivery, note what became of it, and how long it took."""
        began = time.monotonic()
        try:
            delivered = await call
        except UncertainAppendError:
            self.told("U", kind, name, number)
        except MaildirError as exc:
            self.told("R", kind, name, number)
            self.journal.count(f"{kind}: {type(exc).__name__} {exc.errno}")
        except (TimeoutError, asyncio.CancelledError):
            self.told("C", kind, name, number)
        else:
            self.journal.add(kind, time.monotonic() - began)
            self.plant_in(delivered, number)
            self.told("A", kind, name, number)
            return delivered
        return None

    def told(self, outcome: str, kind: str, name: str, number: int) -> None:
        """Note it."""
        self.notes.tell(outcome, name, number)
        self.journal.count(f"{kind}: {outcome}")

    async def whole(self) -> None:
        number = next(self.numbers)
        await self.one("whole", "plain", number, self.maildirs["plain"].append(message(number)))

    async def stream(self) -> None:
        number = next(self.numbers)
        data = message(number, self.dice.randrange(200, 8000))

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 16384):
                await asyncio.sleep(0)
                yield data[start : start + 16384]

        await self.one("stream", "streams", number, self.maildirs["streams"].append(chunks()))

    async def folder(self) -> None:
        number = next(self.numbers)
        folder = f"Archive/{number % 7}"
        await self.one("folder", "folders", number, self.maildirs["folders"].append(message(number), folder=folder))

    async def keywords(self) -> None:
        number = next(self.numbers)
        words = [f"word{number % 11}", "$Forwarded"]
        call = self.maildirs["keywords"].append(message(number), keywords=words, flags="S" if number % 2 else "")
        await self.one("keywords", "keywords", number, call)

    async def quota(self) -> None:
        number = next(self.numbers)
        await self.one("quota", "quota", number, self.maildirs["quota"].append(message(number)))

    async def fan_out(self) -> None:
        number, began = next(self.numbers), time.monotonic()
        names = ("team1", "team2", "team3")
        for name, outcome in zip(
            names, await deliver(message(number), [self.maildirs[name] for name in names]), strict=True
        ):
            if outcome.delivered is not None:
                self.told("A", "fan-out", name, number)
                self.journal.add("fan-out", time.monotonic() - began)
            else:
                self.told("U" if isinstance(outcome.error, UncertainAppendError) else "R", "fan-out", name, number)

    async def many(self) -> None:
        numbers, began = [next(self.numbers) for _ in range(10)], time.monotonic()
        outcome = "A"
        try:
            await self.maildirs["many"].append_many([message(number) for number in numbers], atomic=True)
        except UncertainAppendError:
            outcome = "C"  # some may be there
        except MaildirError as exc:
            self.journal.count(f"many: {type(exc).__name__} {exc.errno}")
            outcome = "R"
        else:
            self.journal.add("many", time.monotonic() - began)
        for number in numbers:
            self.told(outcome, "many", "many", number)

    async def hasty(self) -> None:
        number = next(self.numbers)

        async def in_time() -> Delivered:
            async with asyncio.timeout(self.dice.uniform(0, 0.01)):
                return await self.maildirs["hasty"].append(message(number))

        await self.one("hasty", "hasty", number, in_time())

    async def fed(self) -> None:
        number = next(self.numbers)
        data = message(number, 500)

        async def feed() -> Delivered:
            async with self.maildirs["fed"].open_append() as task:
                for start in range(0, len(data), 4096):
                    await task.send(data[start : start + 4096])
            return task.future.result()

        await self.one("fed", "fed", number, feed())

    async def aborted(self) -> None:
        number = next(self.numbers)
        with contextlib.suppress(KeyError, MaildirError):
            async with self.maildirs["fed"].open_append() as task:
                await task.send(message(number, 500)[:8192])
                raise KeyError
        self.told("R", "aborted", "fed", number)

    async def through_helper(self) -> None:
        number = next(self.numbers)
        await self.one("helper", "helper", number, self.maildirs["helper"].append(message(number)))

    async def bad_disk(self) -> None:
        number = next(self.numbers)
        await self.one("bad disk", "bad", number, self.maildirs["bad"].append(message(number)))

    async def gone(self) -> None:
        number = next(self.numbers)
        await self.one("gone", "gone", number, self.maildirs["gone"].append(message(number)))

    async def smtp(self) -> None:
        if self.server is None:
            return
        number, began = next(self.numbers), time.monotonic()
        outcome, writer = "R", None
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.options.work / "smtp"))
            for line in (
                None,
                b"EHLO soak.example",
                b"MAIL FROM:<a@soak.example>",
                b"RCPT TO:<b@soak.example>",
                b"DATA",
            ):
                if line is not None:
                    writer.write(line + b"\r\n")
                while (await reader.readline())[3:4] == b"-":
                    pass
            outcome = "C"  # what was sent whole may be there if the reply does not come
            writer.write(message(number).replace(b"\n", b"\r\n") + b".\r\n")
            reply = await reader.readline()
            outcome = "A" if reply.startswith(b"250") else "R" if reply[:1] in (b"4", b"5") else "C"
            writer.write(b"QUIT\r\n")
            await reader.read()
        except OSError as exc:
            self.journal.count(f"smtp: {type(exc).__name__} {exc.errno}")
        finally:
            if writer is not None:
                writer.close()
        if outcome == "A":
            self.journal.add("smtp", time.monotonic() - began)
        self.told(outcome, "smtp", "smtp", number)

    async def fork(self) -> None:
        """A child delivers with what it has inherited, on a loop of its own."""
        number = next(self.numbers)
        self.journal.count("fork")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns where there are threads
            try:
                pid = os.fork()
            except OSError:
                return
        if pid == 0:
            try:
                signal.alarm(60)
                asyncio.events._set_running_loop(None)
                with contextlib.suppress(MaildirError):
                    asyncio.run(self._in_child(number))
            finally:
                os._exit(0)
        status = await asyncio.to_thread(os.waitpid, pid, 0)
        if status[1]:
            self.journal.write("fault", what=f"a forked child ended with {status[1]}")

    async def _in_child(self, number: int) -> None:
        try:
            async with asyncio.timeout(50):
                await self.maildirs["forked"].append(message(number))
        except UncertainAppendError:
            self.notes.tell("U", "forked", number)
        except MaildirError:
            self.notes.tell("R", "forked", number)
        else:
            self.notes.tell("A", "forked", number)

    async def clean(self) -> None:
        for maildir in self.maildirs.values():
            with contextlib.suppress(MaildirError):
                if removed := await maildir.clean_tmp(timedelta(hours=36)):
                    self.journal.write("fault", what=f"clean_tmp removed {removed}")

    async def index(self) -> None:
        with contextlib.suppress(MaildirError):
            index = await self.maildirs["plain"].index()
            await asyncio.sleep(self.look_s)
            self.journal.count("index held")
            if len({each.key for each in index}) != len(index):
                self.journal.write("fault", what="an index has a message twice")

    async def watch(self) -> None:
        watching = self.maildirs["folders"].watch(f"Archive/{next(self.numbers) % 7}")
        keys: set[str] = set()
        with contextlib.suppress(MaildirError, TimeoutError):
            async with contextlib.aclosing(watching), asyncio.timeout(self.look_s):
                async for each in watching:
                    if each.key in keys:
                        self.journal.write("fault", what=f"watch told twice of {each.key}")
                    keys.add(each.key)
        self.journal.count("watched")

    async def serve(self) -> None:
        """Have an SMTP server in this process."""
        try:
            from maildir_async.smtp import MaildirHandler, StreamingSMTP
        except ImportError:  # aiosmtpd is not installed
            return
        handler = MaildirHandler(str(self.root / "smtp"))
        self.server = await asyncio.get_running_loop().create_unix_server(
            lambda: StreamingSMTP(handler, hostname="mx.soak.example"), str(self.options.work / "smtp")
        )

    # Planted, to see it found.

    def plant_in(self, delivered: Delivered, number: int) -> None:
        """Do to a message what no library may."""
        plant = self.options.plant
        if plant in ("loss", "torn", "twice") and number % 50 == 0:
            with contextlib.suppress(FileNotFoundError):
                if plant == "loss":
                    os.unlink(delivered.path)
                elif plant == "torn":
                    os.truncate(delivered.path, delivered.size // 2)
                else:
                    shutil.copy(delivered.path, f"{delivered.path}again")

    async def leak(self) -> None:
        """Leak what was asked for, a little every 50 ms."""
        plant = self.options.plant
        while not self.ends.is_set():
            if plant == "descriptor":
                self.planted.append(os.open("/dev/null", os.O_RDONLY))
            elif plant == "thread":
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            elif plant == "memory":
                self.planted.append(os.urandom(1 << 18))
            elif plant == "task":
                self.planted.append(asyncio.create_task(asyncio.Event().wait()))
            elif plant == "object":
                self.planted.append([Path() for _ in range(50)])
            await asyncio.sleep(0.05)
