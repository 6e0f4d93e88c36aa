"""``maildir-async serve``: who gets mail, as the command line has it."""

import os
import signal
import sys
from pathlib import Path
from typing import Final

import pytest

from support import some
from test_serve import ENVIRONMENT, mail, refused, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: serve is for Linux")

RESOLVERS: Final = """
import asyncio, os, threading

def plain(address):
    if threading.current_thread() is threading.main_thread():
        raise RuntimeError("on the loop")
    return os.path.join(os.environ["MAIL"], "plain") if address.startswith("alice") else None

async def later(address):
    await asyncio.sleep(0)
    return [os.path.join(os.environ["MAIL"], name) for name in ("one", "two")] if address.startswith("alice") else None

class Known:
    async def __call__(self, address):
        return "relative" if address.startswith("bob") else await later(address)

known = Known()
number = 3
"""


def with_resolvers(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "site_users.py").write_text(RESOLVERS)
    paths = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    return ENVIRONMENT | {"PYTHONPATH": paths, "MAIL": str(tmp_path / "mail"), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.parametrize(
    ("name", "codes", "found"),
    [
        ("plain", ["250", "550"], ["plain"]),
        pytest.param("later", ["250", "550"], ["one", "two"], marks=pytest.mark.heavy),
        ("known", ["250", "451"], ["one", "two"]),
    ],
)
def test_a_resolver_of_the_site(tmp_path: Path, name: str, codes: list[str], found: list[str]) -> None:
    """Code that is named finds maildirs: a function in a thread, a coroutine on the loop; one path or several."""
    options = ["--resolver", f"site_users:{name}", "--domains", "a.example, b.example"]
    with serving(tmp_path, *options, layout=False, environment=with_resolvers(tmp_path)) as daemon:
        assert daemon.events("no_postmaster") == []
        with daemon.client() as client:
            told = client.envelope("alice@a.example", "bob@b.example", "alice@c.example")[1:]
            assert [reply[:3] for reply in told] == [*codes, "550"]
            assert told[2].startswith("550 5.7.1 ")
            assert client.data()[0].startswith("250 ")
        daemon.wait_for("delivered", len(found))
    assert [len(mail(tmp_path, name)) for name in found] == [1] * len(found)


@pytest.mark.parametrize(
    ("name", "words"),
    some(
        [
            ("site_users:nobody", "AttributeError"),
            ("nothing_there:x", "ModuleNotFoundError"),
            ("site_users:number", "not callable"),
        ],
        2,
    ),
)
def test_a_resolver_that_cannot_be_had(tmp_path: Path, name: str, words: str) -> None:
    """A mistake in its name is told at the start, in one line, with 78 (EX_CONFIG)."""
    done = refused("--lmtp", f"unix:{tmp_path}/socket", "--resolver", name, environment=with_resolvers(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (os.EX_CONFIG, 1), done.stderr
    assert f"--resolver {name}: " in done.stderr
    assert words in done.stderr


def test_aliases_delimiters_and_a_postmaster(tmp_path: Path) -> None:
    """A map's aliases, domains and delimiters, and who is postmaster; an emptied map is logged, the old one stays."""
    (tmp_path / "map").write_text(
        f"alice@a.example {tmp_path}/mail/alice\nbob@a.example {tmp_path}/mail/bob\n"
        "all@a.example alice@a.example, bob@a.example\n@b.example all@a.example\n"
    )
    options = ["--map", str(tmp_path / "map"), "--recipient-delimiter", "-", "--postmaster", "bob@a.example"]
    with serving(tmp_path, *options, "--original-to", layout=False) as daemon, daemon.client() as client:
        told = client.envelope(
            "alice-x/y@a.example", "x@b.example", "POSTMASTER", "postmaster@a.example", "a+x@a.example"
        )
        assert [reply[:3] for reply in told[1:]] == ["250", "250", "250", "250", "550"]
        assert [reply[:3] for reply in client.data(replies=4)] == ["250"] * 4
        assert daemon.events("no_postmaster") == []
        (tmp_path / "map").write_text("# soon\n")
        daemon.signal(signal.SIGHUP)
        assert "no addresses any more" in daemon.wait_for("reload_failed")["error"]
        client.say("RSET")
        assert client.say("MAIL FROM:<>").startswith("250")
        assert client.say("RCPT TO:<alice@a.example>").startswith("250")
    assert [len(mail(tmp_path, name)) for name in ("alice", "bob")] == [1, 1]


def test_a_map_before_a_layout(tmp_path: Path) -> None:
    """--map with --layout has aliases for the layout's users; with both files at SIGHUP it is both, or neither."""
    users, table = tmp_path / "users", tmp_path / "map"
    users.write_text("alice@a.example\nbob@a.example\n")
    table.write_text("info@a.example alice@a.example, bob@a.example\npostmaster info@a.example\n")
    with serving(tmp_path, "--users", str(users), "--map", str(table)) as daemon, daemon.client() as client:
        assert [reply[:3] for reply in client.envelope("info@a.example", "postmaster")[1:]] == ["250", "250"]
        assert [reply[:3] for reply in client.data(replies=2)] == ["250", "250"]
        assert daemon.events("no_postmaster") == []
        users.write_text("alice@a.example\nbob@a.example\ncarol@a.example\n")
        table.write_text("info@a.example info\n")
        daemon.signal(signal.SIGHUP)
        assert "map, line 1" in daemon.wait_for("reload_failed")["error"]
        client.say("MAIL FROM:<>")
        told = [client.say(f"RCPT TO:<{name}@a.example>")[:3] for name in ("carol", "info")]
        assert told == ["550", "250"]
    assert [len(mail(tmp_path, name)) for name in ("alice", "bob")] == [1, 1]


@pytest.mark.parametrize(
    "arguments",
    some(
        [
            ["--layout", "/srv/{user}", "--recipient-delimiter", "a"],
            [],
            ["--resolver", "a:b", "--map", "/m"],
            ["--resolver", "a:b", "--layout", "/srv/{user}"],
            ["--resolver", "a"],
            ["--layout", "/srv/{user}", "--domains", "a example"],
            ["--layout", "/srv/{user}", "--postmaster", "alice"],
        ],
        3,
    ),
    ids=" ".join,
)
def test_what_makes_no_sense(tmp_path: Path, arguments: list[str]) -> None:
    """It is told at once, in a line."""
    done = refused("--lmtp", f"unix:{tmp_path}/socket", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (os.EX_USAGE, 1), done.stderr


def test_nobody_is_postmaster_and_nothing_is_mounted(tmp_path: Path) -> None:
    """A line at the start says so; while a directory is no mount point, all mail is to come again."""
    options = ["--create", "--require-mount", str(tmp_path / "mail")]
    users = tmp_path / "users"
    users.write_text("alice@example.com\n")
    with serving(tmp_path, "--users", str(users), *options) as daemon, daemon.client() as client:
        assert "--postmaster" in daemon.wait_for("no_postmaster")["hint"]
        told = client.envelope("alice@example.com", "bob@example.com", "postmaster")
        assert [reply[:3] for reply in told[1:]] == ["451"] * 3
        assert "is not a mount point" in daemon.wait_for("deferred")["error"]
    assert os.listdir(tmp_path / "mail") == []


def test_what_needs_a_restart_is_named(tmp_path: Path) -> None:
    """At SIGHUP the file of options is looked at again: a mistake is told, and what has changed is named."""
    path = tmp_path / "serve.toml"
    path.write_text("max-errors = 5\n")
    with serving(tmp_path, "--create", "--config", str(path)) as daemon:
        daemon.wait_for("ready")
        path.write_text("max-errors = 0\n")
        daemon.signal(signal.SIGHUP)
        assert f"{path}, line 1: max-errors" in daemon.wait_for("reload_failed")["error"]
        path.write_text("max-errors = 6\n")
        daemon.signal(signal.SIGHUP)
        assert daemon.wait_for("restart_needed")["options"] == ["max_errors"]
