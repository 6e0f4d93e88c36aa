"""Compares what Postfix says with what IMAP shows. Pure; `test_checks` shows that each fault is found."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .mail import SIZE_LIMIT, mailbox
from .mailboxes import Copy, Refusal
from .postfix_log import RESOLUTION_S, Attempt, History
from .send import Accepted

#: Names of the fields that a message may get on its way.
TRACE: Final = frozenset({"Return-Path", "Delivered-To", "X-Original-To", "Received"})

NO_SUCH_USER: Final = "5.1.1"
TOO_LARGE: Final = "5.3.4"


@dataclass
class Verdict:
    """What was found.

    Attributes:
        counts: what the summary tells.
        faults: what must not be.
        disorder: where UIDs do not follow arrival.

    """

    counts: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    disorder: list[str] = field(default_factory=list[str])


def check(
    accepted: Sequence[Accepted],
    histories: Mapping[str, History],
    copies: Sequence[Copy],
    users: Collection[str],
    *,
    size_limit: int = SIZE_LIMIT,
) -> Verdict:
    """Check that every message is where Postfix says that it is, once, as it was sent; and nothing else is anywhere."""
    verdict = Verdict()
    verdict.counts["accepted"] = len(accepted)
    by_message: dict[tuple[str, str], list[Copy]] = defaultdict(list)
    for copy in copies:
        by_message[copy.queue_id, copy.user].append(copy)
    refusals = {(r.queue_id, r.recipient): r for copy in copies for r in copy.refusals}
    explained: set[tuple[str, str]] = set()
    for message in accepted:
        history = histories.get(message.queue_id, History())
        is_refused = False
        for recipient in message.recipients:
            user = mailbox(recipient)
            due = None if user in users else NO_SUCH_USER
            if message.size > size_limit:
                due = TOO_LARGE
            if due is None:
                explained.add((message.queue_id, user))
                found = by_message[message.queue_id, user]
                _check_delivery(message.queue_id, recipient, history, found, verdict)
                for copy in found:
                    verdict.faults += _wrong(copy, message)
            else:
                is_refused = True
                refusal = refusals.get((message.queue_id, recipient))
                verdict.faults += _check_refusal(message, recipient, due, history, refusal)
                verdict.counts["refused"] += 1
        sender = mailbox(message.sender)
        if is_refused and history.notice is not None:
            explained.add((history.notice, sender))
            verdict.counts["bounces"] += 1
            bounce = histories.get(history.notice, History())
            _check_delivery(history.notice, message.sender, bounce, by_message[history.notice, sender], verdict)
        elif (history.notice is not None) != is_refused:
            verdict.faults.append(f"{message.queue_id}: a bounce is {'due' if is_refused else 'not due'}")
    for key, found in by_message.items():
        if key not in explained:
            verdict.faults.append(f"{key[1]} has {len(found)} of {key[0] or 'a message that Postfix does not know'}")
    waves = {message.queue_id: message.wave for message in accepted}
    waves |= {
        notice: wave
        for queue_id, wave in waves.items()
        if (notice := histories.get(queue_id, History()).notice) is not None
    }
    verdict.disorder = check_order(copies, histories, waves, verdict.counts)
    return verdict


def _check_delivery(queue_id: str, recipient: str, history: History, copies: Sequence[Copy], verdict: Verdict) -> None:
    """Count what one recipient has of a message that is due to him."""
    name = f"{queue_id} for {recipient}"
    final = history.final(recipient)
    twice = history.perhaps_twice(recipient)
    verdict.counts["tried again"] += sum(not a.is_final for a in history.attempts if a.recipient == recipient)
    verdict.counts["perhaps sent twice"] += twice
    if final is None:
        verdict.faults.append(f"{name}: Postfix has not done with it")
    elif final.status != "sent" or not final.dsn.startswith("2."):
        verdict.faults.append(f"{name}: {final.status} ({final.reason})")
    elif not copies:
        verdict.faults.append(f"{name}: LOST, it was acknowledged: {final.reason}")
    else:
        verdict.counts["delivered"] += 1
    if copies:
        verdict.counts["duplicates"] += len(copies) - 1
    if len(copies) > 1 + twice:
        verdict.faults.append(f"{name}: {len(copies)} copies, and {twice} replies that were not heard")


def _check_refusal(
    message: Accepted, recipient: str, due: str, history: History, refusal: Refusal | None
) -> Iterable[str]:
    name = f"{message.queue_id} for {recipient}"
    final = history.final(recipient)
    if final is None or final.status != "bounced" or final.dsn != due:
        yield f"{name}: should have been refused with {due}, and is {final.status if final else 'not done with'}"
        return
    if due == NO_SUCH_USER and f"550 {due}" not in final.reason:
        yield f"{name}: refused with a wrong code: {final.reason}"
    if refusal is None:
        yield f"{name}: its sender has no bounce"
    elif refusal.status != due or (due == NO_SUCH_USER and f"smtp; 550 {due}" not in refusal.diagnostic):
        yield f"{name}: a wrong bounce: {refusal.status}, {refusal.diagnostic}"


def _wrong(copy: Copy, message: Accepted) -> Iterable[str]:
    """Tell what is wrong with one copy: bytes, size, trace fields."""
    name = f"{copy.queue_id} as {copy.user} has it"
    if copy.digest != message.digest:
        yield f"{name}: its bytes are not those that were sent"
    if copy.size != copy.octets:
        yield f"{name}: RFC822.SIZE is {copy.size}, and it has {copy.octets} octets"
    names = Counter(field for field, _ in copy.trace)
    if set(names) - TRACE or names["Received"] != 2 or names["Return-Path"] != 1 or copy.trace[0][0] != "Return-Path":
        yield f"{name}: its trace fields are {[field for field, _ in copy.trace]}"
    for field_, value in copy.trace:
        if field_ == "Return-Path" and value != f"<{message.sender}>":
            yield f"{name}: Return-Path is {value}"
        if field_ == "Delivered-To" and mailbox(value.strip("<>")) != copy.user:
            yield f"{name}: Delivered-To is {value}"
        for recipient in message.recipients:
            if field_ != "Return-Path" and mailbox(recipient) != copy.user and recipient in value:
                yield f"{name}: {field_} tells of {recipient}"


def check_order(
    copies: Sequence[Copy], histories: Mapping[str, History], waves: Mapping[str, int], counts: Counter[str]
) -> list[str]:
    """Return where UIDs do not follow arrival: a message that was there before another one began has the lower UID.

    It was if it was sent in an earlier wave, or if the log's clock says so. Between the two nobody knows.
    """
    how_many = Counter((copy.queue_id, copy.user) for copy in copies)
    mailboxes: dict[str, list[_Arrival]] = defaultdict(list)
    for copy in copies:
        sent = [
            attempt
            for attempt in histories.get(copy.queue_id, History()).attempts
            if attempt.status == "sent" and mailbox(attempt.recipient) == copy.user
        ]
        if sent and how_many[copy.queue_id, copy.user] == 1:  # of two nobody knows which came when
            mailboxes[copy.user].append(_Arrival(copy, sent[0], waves.get(copy.queue_id, 0)))
    faults: list[str] = []
    for user, arrivals in mailboxes.items():
        arrivals.sort(key=lambda arrival: arrival.copy.uid)
        for number, arrival in enumerate(arrivals):
            for later in arrivals[number + 1 :]:
                counts["pairs in order"] += arrival.precedes(later)
                if later.precedes(arrival):
                    names = [f"UID {each.copy.uid} ({each.copy.queue_id})" for each in (arrival, later)]
                    faults.append(f"{user}: {names[0]} began after {names[1]} was there")
    return faults


@dataclass(frozen=True)
class _Arrival:
    copy: Copy
    attempt: Attempt
    wave: int

    def precedes(self, other: "_Arrival") -> bool:
        return self.wave < other.wave or self.attempt.ended + RESOLUTION_S <= other.attempt.began
