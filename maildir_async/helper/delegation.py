"""Hands messages to the helper process, over one channel for each loop, and sees to what a dead one leaves."""

import contextlib
import time
import weakref
from asyncio import AbstractEventLoop
from functools import partial
from typing import Final

from maildir_async.commit.entry import QUEUED
from maildir_async.commit.queue import Queue
from maildir_async.disk.calls import Disk
from maildir_async.disk.posix import PosixDisk
from maildir_async.helper.channel import Channel
from maildir_async.helper.in_flight import InFlight
from maildir_async.helper.process import END_S, Helper, HelperProcess
from maildir_async.helper.recovery import give_up, recover

__all__ = ["Delegation"]

#: Seconds between two looks whether everything has been answered for, when the helper is to end.
POLL_S: Final = 0.005

#: Seconds that the helper gets at least to end by itself, when it has answered for nothing in all the time before.
LAST_S: Final = 2.0


class Delegation:
    """The helper process and the channels to it.

    Args:
        queue: what settles messages, and takes those that a dead helper has left undone. Its threads start the helper,
            and wait for its end.
        syncfs: whether the helper is to sync whole file systems.

    """

    def __init__(self, queue: Queue, *, syncfs: bool) -> None:
        self._queue = queue
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

    def channel(self, loop: AbstractEventLoop, disk: Disk) -> Channel | None:
        """Return what takes messages of *loop*, the running one, to the helper; None if they stay in this process."""
        if type(disk) is not PosixDisk:  # one that behaves otherwise cannot be there
            return None
        channel = self._channels.get(id(loop))
        if channel is not None and not channel.closed:
            return channel
        process, is_new = self._helper.wanted()
        if process is None:
            return None
        try:
            channel = self._channels[id(loop)] = Channel(loop, process, self._queue, self)
        except OSError:  # too many open files, for one: this process does the work
            if is_new:
                self._helper.lost(process)
                process.abandon()
            return None
        if is_new:
            try:
                self._queue.committers.run(partial(self._start, process))
            except RuntimeError:  # no thread to be had: its connections end, and this process does the work
                process.abandon()
        return channel

    def close_orphans(self) -> None:
        """Close the channels of loops that have been closed: the helper finishes what is whole, and drops the rest."""
        for key, channel in list(self._channels.items()):
            if channel.loop.is_closed() and not channel.closed:
                self.abandoned(channel)
                if self._channels.get(key) is channel:
                    self._channels.pop(key, None)

    def abandoned(self, channel: Channel) -> None:
        """See to what *channel* has in flight, whose loop has been closed: it is counted by what becomes of it."""
        channel.leave()
        try:
            self._queue.committers.run(partial(self._drain, channel))
        except RuntimeError:  # no thread to be had
            channel.give_up()

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
        self.wait_gone(max(deadline - time.monotonic(), LAST_S))

    def wait_gone(self, timeout_s: float) -> None:
        """Block until there is no helper, or for so long; one that has not ended by then has been killed."""
        process = self._helper.release()
        if process is not None:
            process.wait_gone(timeout_s)

    def lost(self, channel: Channel, in_flight: list[InFlight]) -> None:
        """Take over what was *in_flight* when the connection came to its end. On the loop's thread."""
        self._helper.lost(channel.process)
        try:
            self._queue.committers.run(partial(self._recover, channel, in_flight))
        except RuntimeError as exc:  # no thread to be had: nobody can look
            over, failed = give_up(in_flight, exc)
            self._queue.settle(over)
            for stream, error in failed:
                channel.loop.call_soon(stream.failed, error)

    def _start(self, process: HelperProcess) -> None:
        with contextlib.suppress(OSError):  # its connections end, and this process does the work
            process.start()

    def _drain(self, channel: Channel) -> None:
        in_flight = channel.drain()
        if not channel.is_over:
            self._helper.lost(channel.process)
        self._recover(channel, in_flight)

    def _recover(self, channel: Channel, in_flight: list[InFlight]) -> None:
        # However long that takes: as long as there is any of it, it may still publish a message.
        while not channel.is_over and not channel.process.wait_gone(END_S):
            pass
        over, again, failed = recover(in_flight)
        self._queue.settle(over)
        with contextlib.suppress(RuntimeError):  # a closed loop has nobody left to tell
            for stream, error in failed:
                channel.loop.call_soon_threadsafe(stream.failed, error)
        for entry in again:
            entry.state = QUEUED
        self._queue.enqueue(again)
