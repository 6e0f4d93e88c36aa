"""The daemon: ``maildir-async serve``. A main process that holds the sockets, and workers that it forks.

Linux only: shared memory across forks, ``sigtimedwait(2)``, ``SO_ACCEPTCONN``.
"""

__all__: list[str] = []
