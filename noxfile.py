"""What a change is tried with, by name: ``nox -s test``, ``nox -l`` for the list. CONTRIBUTING.md says when.

Each session makes its environment from pyproject.toml alone, and hands what follows ``--`` to its command.
`.ci/run` does all of this without nox, on a machine that has nothing but Python.
"""

import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "test"]
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)


def group(name: str) -> list[str]:
    """Return what a dependency group asks for, for a pip that knows no groups."""
    return list(nox.project.dependency_groups(PROJECT, name))


def rig(session: nox.Session, module: str, *needs: str) -> None:
    """Run *module* with what follows ``--``, where the tests and what else it *needs* are installed."""
    session.install("-e", ".[test]", *needs)
    session.run("python", "-m", module, *session.posargs)


@nox.session(python=PYTHONS)
def test(session: nox.Session) -> None:
    """The tests, without the heavy ones. One Python: ``nox -s test-3.12``; heavy ones: ``-- -m heavy``."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def heavy(session: nox.Session) -> None:
    """The heavy tests, with every peer of the benchmarks."""
    session.install("-e", ".[test,benchmarks]")
    session.run("python", "-m", "pytest", "-m", "heavy", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: its rules, and its format. ``-- --fix`` mends what it can."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """Both type checkers, strict."""
    session.install("-e", ".[test]")
    session.run("mypy", *session.posargs)
    session.run("pyright", "--pythonpath", session.bin + "/python")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, where a warning is an error. ``-- serve`` shows it at 127.0.0.1:8000."""
    session.install("-e", ".[all]", *group("docs"))
    session.run("mkdocs", *(session.posargs or ["build", "--strict", "--site-dir", session.create_tmp()]))


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks in a short form, as CI runs them; ``-- --help`` tells the long ones, which want root."""
    session.install("-e", ".[benchmarks]")
    with tempfile.TemporaryDirectory() as directory:
        short = ["--rounds", "1", "--seconds", "0.1", "--output", directory + "/results", "--directory", directory]
        session.run("python", "-m", "benchmarks", *(session.posargs or short))


@nox.session
def servers(session: nox.Session) -> None:
    """The daemon between a real Postfix and a real Dovecot, as root. ``-- --full`` is the long form."""
    rig(session, "tests.servers")


@nox.session
def soak(session: nox.Session) -> None:
    """A minute of mixed load with faults in turn, as root. ``-- --full`` is an hour, and a million messages."""
    rig(session, "tests.soak")


@nox.session
def traced(session: nox.Session) -> None:
    """Kills and errors at system calls, and disks that fail, as root. ``-- --full`` is the long form."""
    rig(session, "tests.traced")


@nox.session
def mutations(session: nox.Session) -> None:
    """Lines of the library that are broken one at a time, each to be caught by its test. ``-- --every 8`` is short."""
    rig(session, "tests.mutations")


@nox.session
def storms(session: nox.Session) -> None:
    """Deliveries under everything that can happen at once. ``-- --full`` is the long form."""
    rig(session, "tests.storm")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Every parser and splitter, on hostile octets. ``-- --full`` is the long form, under atheris (``-- mbox`` too)."""
    rig(session, "tests.fuzz", *(["atheris"] if session.posargs else []))


@nox.session
def cluster(session: nox.Session) -> None:
    """Several writers on a GlusterFS volume whose bricks are killed, as root. ``-- --full`` is the long form."""
    rig(session, "tests.cluster")


@nox.session
def lowest(session: nox.Session) -> None:
    """What depends on others most, with the oldest versions that pyproject.toml claims."""
    with tempfile.TemporaryDirectory() as directory:
        requirements = Path(directory, "requirements.txt")
        session.run("python", ".ci/lowest.py", "--output", str(requirements), silent=True)
        session.install("-r", str(requirements))
    session.install("--no-deps", "-e", ".")
    tests = session.posargs or ["@.ci/lowest.txt"]
    session.run("python", "-m", "pytest", "-p", "anyio_mode", *tests, env={"PYTHONPATH": ".ci"})


@nox.session(python="3.12")
def coverage(session: nox.Session) -> None:
    """Which lines the tests reach, subprocesses and all; fails below the floor in pyproject.toml."""
    session.install("-e", ".[test]", *group("coverage"))
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs, env={"COVERAGE_CORE": "sysmon"})
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def distribution(session: nox.Session) -> None:
    """Wheel and sdist: made, and held to what their users and the index expect of them."""
    session.install(*group("distribution"))
    session.run("python", ".ci/distribution.py", *session.posargs)
