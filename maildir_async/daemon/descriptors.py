"""How many file descriptors there are, and what that means for connections and messages."""

import resource
from dataclasses import replace
from typing import Final

from maildir_async.daemon.log import Log
from maildir_async.daemon.settings import Settings

__all__ = ["connections_of_one", "fitted"]

#: Descriptors that the daemon would like to be able to have: some for each connection and each message.
WANTED: Final = 65536

#: Descriptors of a worker that serves nobody: sockets that listen, the loop, the log, maildirs that are looked at.
BASE: Final = 64

#: Descriptors of a connection.
FOR_CONNECTION: Final = 1

#: Descriptors of a message: its file, and in a batch its maildir's ``tmp`` and ``new``.
FOR_MESSAGE: Final = 3


def fitted(settings: Settings, log: Log) -> Settings:
    """Raise the limit of descriptors as far as may be; return *settings* with no more connections and messages than
    there are descriptors for in the workers, so that accept(2) never takes one that a message needs. What was cut is
    told in a line.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    limit = _limit()
    # At most half of what there is for messages: the others are for who sends them.
    share = max(1, min(_share(settings), (limit - BASE) // (2 * FOR_MESSAGE)))
    in_flight = min(settings.max_in_flight, share * settings.workers)
    cut = replace(settings, max_in_flight=in_flight)
    connections = min(settings.max_connections, connections_of_one(cut) * settings.workers)
    cut = replace(cut, max_connections=connections)
    if cut != settings:
        log.event(
            "warning",
            "too_few_descriptors",
            descriptors=limit,
            max_connections=connections,
            max_in_flight=in_flight,
            message=f"a connection needs {FOR_CONNECTION}, a message {FOR_MESSAGE}: raise LimitNOFILE= or ulimit -n",
        )
    return cut


def connections_of_one(settings: Settings) -> int:
    """Return how many connections one worker has descriptors for beside its messages."""
    return max(1, (_limit() - BASE - FOR_MESSAGE * _share(settings)) // FOR_CONNECTION)


def _share(settings: Settings) -> int:
    return -(-settings.max_in_flight // settings.workers)


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft
