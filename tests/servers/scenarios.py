"""Mail flows from SMTP to IMAP: undisturbed, and while workers are killed."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from .checks import Verdict, check
from .daemon import Daemon, DovecotLmtp, Killer, LmtpServer
from .dovecot import Dovecot
from .mail import GHOSTS, KIB, MIB, PEOPLE, SENDERS, SIZE_LIMIT, TEAM, USERS, Letter, letters
from .mailboxes import Copy, Watch, check_files, fetch_all
from .place import NOBODY, Place
from .planted import plant
from .postfix import MESSAGE_LIMIT, Postfix, flow_to
from .send import Accepted, Source, send

#: Whose mailboxes are looked at all the time.
WATCHED: Final = (*PEOPLE[:6], *TEAM[:2])


#: How many times everything is delivered before more is sent.
WAVES: Final = 8


@dataclass(frozen=True)
class Form:
    """How much there is to do.

    Attributes:
        messages: how many are sent, half of them by `smtp-source`.
        largest: bytes of the largest that is not refused.
        kills: how many workers are killed at least.
        settle_s: seconds that Postfix has to deliver everything.
        held: messages that are delivered under a quota, by the library.

    """

    messages: int
    largest: int
    kills: int
    settle_s: float
    held: int


SHORT: Final = Form(messages=300, largest=4 * MIB, kills=5, settle_s=60, held=500)
FULL: Final = Form(messages=2000, largest=20 * MIB, kills=25, settle_s=300, held=5000)


def flow(place: Place, form: Form, say: Callable[[str], None], *, server: str, kill: bool) -> Verdict:
    """Run one scenario and return what was found.

    Args:
        place: where to run.
        form: how much.
        say: told what is being done.
        server: ``ours``, or ``dovecot`` to try the rig.
        kill: kill workers meanwhile; else, in the end, see that the checks find what is planted.

    """
    root = place.directory("mail", NOBODY, 0o700)
    dovecot = Dovecot(place, root, USERS)
    lmtp: LmtpServer = Daemon(place, root, USERS) if server == "ours" else DovecotLmtp(dovecot)
    postfix = Postfix(place, flow_to(lmtp.lmtp))
    limit = SIZE_LIMIT if server == "ours" else MESSAGE_LIMIT  # Dovecot has none, but Postfix
    maildirs = {user: root.joinpath(*reversed(user.split("@")), "Maildir") for user in USERS}
    source = Source(place, postfix.host, postfix.port)
    killer = Killer(lmtp.workers, form.messages)
    watch = Watch(dovecot, WATCHED)
    began = time.monotonic()
    with watch:
        say("sending")
        accepted = _send(source, postfix, form, killer if kill else None)
        say("waiting for Postfix")
        settled = _settle(postfix, len(accepted), form.settle_s)
        took = time.monotonic() - began
        time.sleep(0.5)  # the watch is to see the last of it; nothing depends on that
    by_source, faults = source.accepted(postfix.log)
    accepted += by_source

    def look() -> tuple[list[Copy], Verdict]:
        copies, dropped = fetch_all(dovecot, USERS)
        verdict = check(accepted, postfix.log.histories, copies, USERS, size_limit=limit)
        verdict.faults += dropped
        if server == "ours":  # with Dovecot's LMTP, UIDs do not always follow arrival
            verdict.faults += verdict.disorder
        verdict.faults += check_files(maildirs, killed=kill)
        verdict.faults += watch.missing(copies)
        if not kill or server == "ours":  # Dovecot complains of its own workers that are killed
            verdict.faults += [f"Dovecot: {line}" for line in dovecot.complaints()]
        return copies, verdict

    say("reading by IMAP")
    copies, verdict = look()
    verdict.faults += [*faults, *watch.faults, *(() if settled else ["Postfix has not delivered everything"])]
    verdict.counts["seen while arriving"] = sum(map(len, watch.seen.values()))
    verdict.counts["seconds"] = round(took)
    verdict.faults += lmtp.check(postfix.log.histories, killer.killed)
    if kill:
        verdict.counts["kills"] = killer.killed
        if killer.killed < form.kills:
            verdict.faults.append(f"only {killer.killed} workers could be killed")
    else:
        verdict.faults += [f"Postfix: {line}" for line in postfix.log.complaints]
        say("planting faults")
        planted, missed = plant(copies, maildirs, lambda: look()[1].faults)
        verdict.counts["planted faults found"] = planted
        verdict.faults += missed
    verdict.faults += postfix.stop() + lmtp.stop() + dovecot.stop()
    return verdict


def _send(source: Source, postfix: Postfix, form: Form, killer: Killer | None) -> list[Accepted]:
    """Send everything in waves: one for each kill to wait for, or some of which each is delivered before the next."""
    waves = form.kills if killer else WAVES
    half = form.messages // 2
    mine = letters(form.messages - half, form.largest, seed=2 if killer else 1)
    accepted: list[Accepted] = []
    sent = 0
    for wave in range(waves):
        number = 0 if killer else wave
        goal = half * (wave + 1) // waves
        with killer.striking() if killer else nullcontext():
            _send_batch(source, wave, goal - sent, number)
            accepted += send(mine[wave::waves], postfix.host, postfix.port, connections=8, wave=number)
        sent = goal
        if killer is None:
            _settle(postfix, len(accepted), form.settle_s)
    return accepted


def _send_batch(source: Source, kind: int, messages: int, wave: int) -> None:
    """Send so many, in one of several ways."""
    sender = SENDERS[kind % len(SENDERS)]
    number, size = 9_000_000 + kind, KIB * 4 ** (kind % 5)  # up to 256 KiB
    if kind % 4 == 0:  # to 1team@, 2team@, ...: unknown from the twelfth on
        source.send(Letter(number, size, sender, (TEAM[0],)), messages, wave, "-N", "-d")
    elif kind % 4 == 1:
        source.send(Letter(number, size, sender, (TEAM[0],)), messages, wave, "-r", str(2 + kind % 3))
    elif kind % 4 == 2:
        source.send(Letter(number, size, sender, (PEOPLE[kind % len(PEOPLE)],)), messages, wave)
    else:
        few = min(messages - 1, 3)
        source.send(Letter(number, size, sender, (GHOSTS[0],)), few, wave)
        source.send(Letter(number, size, sender, (PEOPLE[7],)), messages - few, wave, "-d")


def _settle(postfix: Postfix, least: int, seconds: float) -> bool:
    """Wait until Postfix has done with all there is, bounces too."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        postfix.log.read()
        if len(postfix.log.histories) >= least and not postfix.log.unfinished and postfix.queue == 0:
            return True
        time.sleep(0.1)
    return False
