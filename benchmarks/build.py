"""The programs in C and Go, compiled when they are first needed, outside the source tree."""

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

__all__ = ["UnavailableError", "compiled", "go_program"]

HERE: Final = Path(__file__).resolve().parent

#: Where Debian's golang-*-dev packages put their sources. Nothing is downloaded.
GO_SOURCES: Final = Path("/usr/share/gocode")


class UnavailableError(Exception):
    """Something this machine does not have; the text says what, for the report."""


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """Run *command* and return what it printed. Raise `UnavailableError` with what it complained of."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, **(environment or {})}
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise UnavailableError(f"{command[0]}: {exc}") from exc
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise UnavailableError(f"{command[0]}: {complaint[-1]}")
    return done.stdout


@functools.cache
def compiled(source: str, into: Path, *packages: str) -> Path:
    """Compile the C program *source* with what pkg-config says of *packages*; return the program."""
    if shutil.which("cc") is None:
        raise UnavailableError("no C compiler (apt-get install gcc libc6-dev)")
    flags: list[str] = []
    for package in packages:
        try:
            flags += run("pkg-config", "--cflags", "--libs", package).split()
        except UnavailableError as exc:
            raise UnavailableError(f"{package} not found (apt-get install pkg-config libfuse3-dev fuse3)") from exc
    program = into / Path(source).stem
    run("cc", "-O2", "-pthread", "-o", str(program), str(HERE / source), *flags)
    return program


@functools.cache
def go_program(into: Path) -> Path:
    """Compile the Go program; return it."""
    if shutil.which("go") is None or not (GO_SOURCES / "src/github.com/emersion/go-maildir").is_dir():
        raise UnavailableError(
            "no Go, or no go-maildir (apt-get install golang-go golang-github-emersion-go-maildir-dev)"
        )
    program = into / "gomaildir"
    environment = {
        "GO111MODULE": "off",
        "GOPATH": str(GO_SOURCES),
        "GOCACHE": str(into / "go-cache"),
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
        "CGO_ENABLED": "0",
    }
    run("go", "build", "-o", str(program), str(HERE / "gomaildir.go"), environment=environment)
    return program
