"""A map in front of another resolver: aliases and whole domains for users who are elsewhere."""

import errno
import os
from dataclasses import replace

from maildir_async.errors import NotAMaildirError
from maildir_async.smtp.delivery import Refused
from maildir_async.smtp.maps import Elsewhere, MapFile
from maildir_async.smtp.recipients import Found, Resolver, Rooted, Target, resolved

__all__ = ["Aliases"]


class Aliases:
    """What is in the map is found there, and all else by another resolver.

    An exact line of the map wins, then who *others* finds, then the map's line for all of the domain. An alias may lead
    to whomever *others* finds; while it leads to nobody, mail to it may heal (451): the two are read one by one.

    Args:
        table: a map that ``is_partial``.
        others: finds everybody else.

    """

    def __init__(self, table: MapFile, others: Resolver) -> None:
        self._map = table
        self._others = others
        self._rooted = others if isinstance(others, Rooted) else None

    async def __call__(self, address: str) -> Found:
        """Return where mail for *address* goes, or None. `NotAMaildirError` for an alias that leads to nobody."""
        found = self._map.exact(address)
        if found is None:
            found = await resolved(self._others, address)
            if found is None:
                found = self._map.whole_domain(address)
        return await self._followed(found, further=True)

    async def _followed(self, found: Found, *, further: bool) -> Found:
        """Return *found* with the addresses in it looked up; *further*, also by the map's lines for whole domains."""
        if found is None or isinstance(found, str):
            return found
        goals = [found] if isinstance(found, os.PathLike) else list(found)
        if not any(isinstance(goal, Elsewhere) for goal in goals):
            return found
        targets: dict[tuple[str, str], str | os.PathLike[str]] = {}
        for goal in goals:
            if not isinstance(goal, Elsewhere):
                targets.setdefault((os.fspath(goal), goal.detail if isinstance(goal, Target) else ""), goal)
                continue
            try:
                ahead = await resolved(self._others, goal.address)
            except Refused:  # nothing is sent on to other domains
                ahead = None
            if ahead is None and further:
                ahead = await self._followed(self._map.whole_domain(goal.address), further=False)
            if ahead is None:
                text = f"an alias leads to {goal.address}, whom nobody knows"
                raise NotAMaildirError(text, errno=errno.ENOENT, stage="create")
            for path in [ahead] if isinstance(ahead, (str, os.PathLike)) else ahead:
                target = path if isinstance(path, Target) else Target(os.fspath(path), goal.address)
                if not target.detail:
                    target = replace(target, detail=goal.detail)
                targets.setdefault((target.path, target.detail), target)
        return list(targets.values())

    def root_of(self, path: str) -> str | None:
        """Return what *others* says for paths of its own, and the parent for those of the map."""
        root = self._rooted.root_of(path) if self._rooted is not None else None
        return root if root is not None and path.startswith(f"{root}/") else self._map.root_of(path)

    def has_domain(self, domain: str) -> bool:
        """Whether either knows an address in that domain."""
        return self._map.has_domain(domain) or (self._rooted is not None and self._rooted.has_domain(domain))
