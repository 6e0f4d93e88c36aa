"""A resolver of the site's own, by its name: for SQL, LDAP, or whatever else knows who there is."""

import asyncio
import contextvars
import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any, Final

from maildir_async.disk.threads import Crew
from maildir_async.smtp.recipients import Found

__all__ = ["NamedResolver"]

#: Calls of a plain function at once, in each worker. As many may hang before nobody is looked up any more.
CALLS: Final = 16

_callers: Final = Crew(CALLS, "maildir-resolve")


class NamedResolver:
    """What ``module:callable`` stands for: see `Resolver` for what it gets and returns.

    One that is ``async`` is awaited on the loop of its worker. Any other is called in a thread, since it may block:
    it has to be safe to call from several threads at once. `load` imports the module, once, before there are workers:
    what must not be shared between processes, a connection to a database above all, is opened at the first call.

    Args:
        name: the module, a colon, and the name of the callable in it, with dots if need be. ValueError if it is none.

    """

    def __init__(self, name: str) -> None:
        module, _, attribute = name.partition(":")
        parts = [*module.split("."), *attribute.split(".")]
        if not all(part.isidentifier() for part in parts):
            raise ValueError(f"--resolver is MODULE:CALLABLE: {name!r}")
        self._name = name
        self._call: Callable[[str], Any] | None = None
        self._is_async = False

    def load(self) -> None:
        """Import the module, if that has not been done. Blocks. ValueError if there is no such callable."""
        if self._call is not None:
            return
        module, _, attribute = self._name.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as exc:  # whatever the module raises, it is the site's mistake
            raise ValueError(f"--resolver {self._name}: {type(exc).__name__}: {exc}") from exc
        if not callable(found):
            raise ValueError(f"--resolver {self._name}: not callable: {found!r}")
        self._is_async = inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__)
        self._call = found

    async def __call__(self, address: str) -> Found:
        """Return what the callable does. ValueError for a path that is not absolute: the daemon is nowhere."""
        call = self._call
        if call is None:
            raise RuntimeError(f"{self._name} has not been loaded")
        found: Any
        if self._is_async:
            found = await call(address)
        else:
            context = contextvars.copy_context()
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(_callers, lambda: context.run(call, address))
            if inspect.isawaitable(found):
                found = await found
        paths: Any = [found] if isinstance(found, (str, os.PathLike)) else found or ()
        for path in paths:
            if not os.path.isabs(path):
                raise ValueError(f"{self._name} has returned {path!r}, which is no absolute path")
        return found  # type: ignore[no-any-return]  # the finder looks at it
