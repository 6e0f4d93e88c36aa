"""The configuration file of ``serve``, and what ``--check-config`` says of it."""

import argparse
import os
from pathlib import Path

import pytest

from maildir_async.command.main import main
from maildir_async.daemon.options import add_options, settings_of
from maildir_async.daemon.settings import Settings

GOOD = 'lmtp = true\nlayout = "/mail/{user}"\nhostname = "mx.example"\naddress = "127.0.0.1:0"\n'


def settings(path: Path, text: str, *flags: str) -> Settings:
    path.write_text(text)
    parser = argparse.ArgumentParser()
    add_options(parser)
    return settings_of(parser.parse_args(["--config", str(path), *flags]))


def check(path: Path, text: str, *flags: str) -> int:
    path.write_text(text)
    return main(["serve", "--check-config", "--config", str(path), *flags])


def test_a_file_says_what_flags_would(tmp_path: Path) -> None:
    """Each key is an option's name; numbers, switches, sizes and lists become what the flags would."""
    found = settings(
        tmp_path / "c",
        GOOD + 'max-connections = 500\nno-received = true\nsize-limit = "50M"\ntrusted-peers = ["10.0.0.0/8", "unix"]\n'
        "timeout = 30\noriginal-to = false\n",
    )
    (listener,) = found.listeners
    assert (listener.lmtp, found.layout, found.max_connections, found.received) == (True, "/mail/{user}", 500, False)
    assert (found.size_limit, found.timeout_s, found.original_to) == (50 * 2**20, 30.0, False)
    assert listener.trusted_peers == ("10.0.0.0/8", "unix")


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    """What the command line says replaces what the file says, also where options exclude each other, and in lists."""
    text = GOOD + 'max-connections = 500\ntrusted-peers = ["unix"]\n'
    flags = ("--smtp", "--layout", "/m/{user}", "--max-connections", "7", "--trusted-peers", "10.0.0.0/8", "[::1]:24")
    found = settings(tmp_path / "c", text, *flags)
    (listener,) = found.listeners
    assert (listener.lmtp, found.layout, found.max_connections) == (False, "/m/{user}", 7)
    assert listener.trusted_peers == ("10.0.0.0/8",)
    assert str(listener.address) == "[::1]:24"


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("max-conections = 5", "max-conections: there is no such option"),
        ("max-conections = 5", "; did you mean max-connections?"),
        ("Size_Limit = 5", "Size_Limit: there is no such option; did you mean size-limit?"),
        ("[listner]", "listner: there is no such option"),
        ("[listener]", "listener: a table [[listener]], in two pairs of brackets, is wanted"),
        ("lmtp = yes", "lmtp: what stands there is no value of TOML; a text stands in quotes"),
        ('config = "x"', "config: there is no such option"),
        ('max-connections = "many"', "max-connections: a whole number of at least 1 is wanted"),
        ("max-connections = true", "max-connections: a text or a number is wanted"),
        ("max-connections = 1.5", "max-connections: a whole number of at least 1 is wanted"),
        ("max-connections = 0", "max-connections: a whole number of at least 1 is wanted"),
        ("users = []", "users: a text or a number is wanted"),
        ("original-to = 1", "original-to: true or false is wanted"),
        ('size-limit = "50 bananas"', "size-limit: "),
        ('durability = "some"', "durability: one of full, file, none is wanted"),
        ("trusted-peers = [5]", "trusted-peers: a network"),
        ('trusted-peers = "10.0.0.0/33"', "trusted-peers: a network"),
        ('user = "no-such-user"', "there is no user"),
        ('tls-cert = "/nowhere"', "/nowhere cannot be read"),
    ],
)
def test_a_mistake_is_told_with_its_line(
    mistake: str, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """--check-config exits with 78 (EX_CONFIG of sysexits.h) and says file, line and key."""
    path = tmp_path / "config.toml"
    assert check(path, GOOD + mistake + "\n") == os.EX_CONFIG
    assert f"{path}, line 5: " in (error := capfd.readouterr().err)
    assert told in error


MISSING = GOOD.replace("lmtp = true\n", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace('"/mail', '"mail'), ", line 2: layout: the template must be an absolute path"),
        (GOOD.replace("{user}", "x"), ", line 2: layout: the template has no {user}"),
        (MISSING, ", line 3: address: one of --lmtp and --smtp is wanted for 127.0.0.1:0"),
        (
            MISSING.replace("address", "[[listener]]\naddress"),
            ", line 4: address: one of --lmtp and --smtp is wanted for 127.0.0.1:0",
        ),
        ('layout = "/mail/{user}"\nhostname = "mx.example"\n', ": one of --lmtp and --smtp is wanted"),
        ("lmtp = true\n", ": one of --layout, --map and --resolver is wanted"),
        (GOOD + 'postmaster = "x"\n', ", line 5: postmaster: "),
        (GOOD + 'recipient-delimiter = "ab"\n', ", line 5: recipient-delimiter: "),
        (GOOD + 'domains = "a b"\n', ", line 5: domains: "),
        (GOOD + 'group = "nogroup"\n', ", line 5: group: --group goes with --user"),
    ],
)
@pytest.mark.parametrize("checks", [True, False])
def test_what_cannot_be_together_is_told_with_the_file(
    text: str, told: str, checks: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also what is found out only when the daemon is put together, and what is missing, has the file, and its line."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert main(["serve", *["--check-config"] * checks, "--config", str(path)]) == os.EX_CONFIG
    assert capfd.readouterr().err.startswith(f"maildir-async: {path}{told}")


def test_what_the_command_line_says_is_not_the_file_s(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A mistake of the command line is told as such, also where there is a file."""
    text = GOOD.replace('layout = "/mail/{user}"\n', "")
    assert check(tmp_path / "c", text, "--layout", "mail/{user}") == os.EX_CONFIG
    assert capfd.readouterr().err == "maildir-async: --layout: the template must be an absolute path\n"


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is no TOML at all is told with the line that tomllib names."""
    assert check(tmp_path / "c", GOOD + "workers = \n") == os.EX_CONFIG
    assert "line 5" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--tls-key", "k"], "--tls-key goes with --tls-cert"),
        (["--require-tls"], "goes with --tls-cert"),
        (["--group", "nogroup"], "--group goes with --user"),
        (["--ident", "a\r\n220 b"], "printable ASCII"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(
    flags: list[str], told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What would be without effect, or break the protocol, is told."""
    assert check(tmp_path / "c", GOOD, *flags) == os.EX_CONFIG
    assert told in capfd.readouterr().err


@pytest.mark.parametrize("name", ["a" * 64, "a..b", ".", "a b", "-a", "a" * 62 + ("." + "b" * 62) * 4])
def test_a_host_name_that_is_none_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A label of 64 octets, an empty one, and a name of more than 253 are told (RFC 1035 §2.3.4)."""
    assert check(tmp_path / "c", GOOD.replace("mx.example", name)) == os.EX_CONFIG
    assert "hostname: a host name is wanted" in capfd.readouterr().err


def test_checking_changes_nothing(tmp_path: Path) -> None:
    """--check-config of what is right exits with 0, binds nothing and makes nothing."""
    text = GOOD.replace('"127.0.0.1:0"', f'"unix:{tmp_path}/socket"') + f'pidfile = "{tmp_path}/pid"\n'
    assert check(tmp_path / "c", text) == os.EX_OK
    assert os.listdir(tmp_path) == ["c"]


def test_users_are_checked_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file of users that cannot be read is a mistake."""
    assert check(tmp_path / "c", GOOD + f'users = "{tmp_path}/nowhere"\n') == os.EX_CONFIG
    assert "nowhere cannot be read" in capfd.readouterr().err


def test_each_listener_has_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What a table leaves out comes from above, flags win, and what is no listener's is told with its line."""
    text = (
        'layout = "/mail/{user}"\nhostname = "mx.example"\ntrusted-peers = ["10.0.0.0/8"]\n'
        '[[listener]]\naddress = "unix:/s"\nlmtp = true\ntrusted-peers = ["unix"]\n'
        '[[listener]]\naddress = "systemd:smtp"\nsmtp = true\n'
    )
    found = settings(tmp_path / "c", text, "--socket-mode", "0600").listeners
    assert [(str(each.address), each.lmtp, each.trusted_peers, each.socket_mode) for each in found] == [
        ("unix:/s", True, ("unix",), 0o600),
        ("systemd:smtp", False, ("10.0.0.0/8",), 0o600),
    ]
    (listener,) = settings(tmp_path / "c", text, "--smtp", "[::1]:25").listeners
    assert (str(listener.address), listener.lmtp) == ("[::1]:25", False)
    assert check(tmp_path / "c", text + "workers = 2\n") == os.EX_CONFIG
    assert f"{tmp_path / 'c'}, line 11: workers: a listener has no such option" in capfd.readouterr().err


def test_a_key_that_is_said_twice_is_told_with_both_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The key, its line, the line of the first, and what to do; tomllib says that it cannot overwrite a value."""
    path = tmp_path / "config.toml"
    assert check(path, GOOD + "workers = 2\nworkers = 3\n") == os.EX_CONFIG
    assert f"{path}, line 6: workers: it is said twice, first in line 5; leave one" in capfd.readouterr().err
