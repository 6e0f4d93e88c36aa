"""Paths made absolute, and nothing else done to them."""

import os

__all__ = ["absolute"]


def absolute(path: str) -> str:
    """Return *path* as it is meant from where the process stands now: an exact str without ``.`` and empty parts.

    ``..`` stays, as `os.path.abspath` would not have it: after a symbolic link it leads to where only the system knows.
    """
    path = str.__str__(path)
    if not path.startswith("/"):  # nobody else need be asked where this is, which may have been removed
        path = f"{os.getcwd()}/{path}"
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
