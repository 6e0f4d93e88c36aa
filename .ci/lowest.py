"""Print what pip has to install for the tests to run with the oldest versions that pyproject.toml claims.

For each dependency of the package and of the extras for its users exactly that version; and the extra `test`, less what
is among those. The versions of what is only for the tests are claimed to nobody, and are not held back.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path
from typing import Final

PYPROJECT: Final = Path(__file__).parents[1] / "pyproject.toml"

#: Extras for development; and `all`, which only names others.
NOT_CLAIMED: Final = {"all", "benchmarks", "test"}


def claim(requirement: str) -> tuple[str, str]:
    """Return the name in *requirement*, and its oldest version: it has to be ``name>=version`` and no more."""
    parts = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement)
    if parts is None:
        raise SystemExit(f"{requirement!r} in pyproject.toml claims no oldest version")
    return parts[1], parts[2]


def lowest() -> list[str]:
    """Return requirements for pip."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    claims = dict(map(claim, project["dependencies"]))
    for name in extras.keys() - NOT_CLAIMED:
        claims |= map(claim, extras[name])
    others = [one for one in extras["test"] if re.split(r"[^A-Za-z0-9._-]", one)[0] not in claims]
    return sorted(f"{name}=={version}" for name, version in claims.items()) + others


def main() -> None:
    """Print them, or write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write them here")
    text = "".join(f"{one}\n" for one in lowest())
    output: Path | None = parser.parse_args().output
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text)


if __name__ == "__main__":
    main()
