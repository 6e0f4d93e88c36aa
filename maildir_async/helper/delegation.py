"""Hands messages to the helper process, over one channel for each loop, and sees to what a dead one leaves."""

import contextlib
import time
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Callable
from functools import partial
from typing import Final

from maildir_async.commit.entry import Entry
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.streamfile import StreamFile as TmpFile
from maildir_async.disk.threads import Crew
from maildir_async.helper.channel import Channel, InFlight
from maildir_async.helper.process import END_S, Helper, HelperProcess
from maildir_async.helper.recovery import give_up, recover

__all__ = ["Delegation"]

#: Seconds between two looks whether everything has been answered for, when the helper is to end.
POLL_S: Final = 0.005


class Delegation:
    """The helper process and the channels to it.

    Args:
        syncfs: whether it is to sync whole file systems.
        crew: whose threads start the helper, and wait for its end.
        settled: told, on the loop they belong to, of entries that have their outcome.
        again: given entries that a dead helper has left undone, in a worker thread.

    """

    def __init__(
        self,
        *,
        syncfs: bool,
        crew: Crew,
        settled: Callable[[list[Entry]], object],
        again: Callable[[list[Entry]], object],
    ) -> None:
        self._crew = crew
        self._settled = settled
        self._again = again
        self._helper = Helper(syncfs=syncfs)
        self.reset()

    def reset(self) -> None:
        """Start anew, in a forked child."""
        self._channels: weakref.WeakValueDictionary[int, Channel] = weakref.WeakValueDictionary()
        self._helper.reset()

    @property
    def pid(self) -> int | None:
        """The helper's process id, while there is one."""
        process = self._helper.process
        return process.pid if process is not None else None

    @property
    def starting(self) -> bool:
        """Whether a thread is at work on starting it."""
        process = self._helper.process
        return process is not None and process.starting

    @property
    def pending(self) -> int:
        """How many messages the helper has been given and not answered."""
        return sum(channel.pending for channel in list(self._channels.values()))

    @property
    def has_channels(self) -> bool:
        """Whether there is any loop to look after."""
        return bool(self._channels)

    def channel(self, loop: AbstractEventLoop, tmpfile: TmpFile) -> Channel | None:
        """Return what takes messages of *loop*, the running one, to the helper; None if they stay in this process."""
        if type(tmpfile.directories.disk) is not PosixDisk:  # one that behaves otherwise cannot be there
            return None
        channel = self._channels.get(id(loop))
        if channel is not None and not channel.closed:
            return channel
        process, is_new = self._helper.wanted()
        if process is None:
            return None
        channel = self._channels[id(loop)] = Channel(loop, process, settled=self._settled, lost=self._lost)
        if is_new:
            try:
                self._crew.run(partial(self._start, process))
            except RuntimeError:  # no thread to be had: its connections end, and this process does the work
                process.end()
        return channel

    def close_orphans(self) -> None:
        """Close the channels of loops that have been closed."""
        for key, channel in list(self._channels.items()):
            if channel.loop.is_closed():
                channel.close()
                self._channels.pop(key, None)

    def end(self) -> None:
        """Have the helper finish and end. Never waits. The next use starts another."""
        process = self._helper.process
        if process is not None:
            process.end()

    def close(self) -> None:
        """Block until the helper has answered for all it was given, and has ended; or is killed, after `END_S`."""
        deadline = time.monotonic() + END_S
        while self.pending and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self.wait_gone()

    def wait_gone(self, timeout_s: float = END_S) -> None:
        """Block until there is no helper; one that has not ended by then is killed."""
        process = self._helper.release()
        if process is not None:
            process.wait_gone(timeout_s)

    def _start(self, process: HelperProcess) -> None:
        with contextlib.suppress(OSError):  # its connections end, and this process does the work
            process.start()

    def _lost(self, channel: Channel, lost: list[InFlight]) -> None:
        self._helper.lost(channel.process)
        try:
            self._crew.run(partial(self._recover, channel, lost))
        except RuntimeError as exc:  # no thread to be had: nobody can look
            settled, failed = give_up(lost, exc)
            if settled:
                channel.loop.call_soon(self._settled, settled)
            for stream, error in failed:
                channel.loop.call_soon(stream.ended, error)

    def _recover(self, channel: Channel, lost: list[InFlight]) -> None:
        channel.process.wait_gone()
        settled, again, failed = recover(lost)
        with contextlib.suppress(RuntimeError):  # a closed loop has nobody left to tell
            if settled:
                channel.loop.call_soon_threadsafe(self._settled, settled)
            for stream, error in failed:
                channel.loop.call_soon_threadsafe(stream.ended, error)
        if again:
            self._again(again)
