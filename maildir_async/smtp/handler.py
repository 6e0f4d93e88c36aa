"""The handler: recipients become maildirs, a message is delivered to all of them, and the replies tell what is true."""

import asyncio
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final, NoReturn, Self

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope, Session

from maildir_async.disk.base import base_of
from maildir_async.errors import BusyError, MaildirError, busy_error
from maildir_async.format.content import Newline, check_newline
from maildir_async.format.delivered import Durability
from maildir_async.format.junk import JunkHeader
from maildir_async.format.options import (
    DEADLINE,
    DetailFolder,
    check_bool,
    check_callback,
    check_count,
    check_deadline,
    check_detail_folder,
    check_wait,
)
from maildir_async.format.quota import Quota
from maildir_async.group_commit import GroupCommit
from maildir_async.mailbox.fan_out import FanOut
from maildir_async.mailbox.maildir import Maildir
from maildir_async.smtp.delivery import Refused, announced_size, transmission_type
from maildir_async.smtp.finder import Finder, Recipient, resolver_of
from maildir_async.smtp.maps import Goal
from maildir_async.smtp.message import Client, CutOff, MessageDelivery, Place, Receipt, Receipts, client_of
from maildir_async.smtp.recipients import Resolver, Rooted
from maildir_async.smtp.replies import NOT_STORED, combined, joined
from maildir_async.smtp.sorting import DetailFolders, Sorted
from maildir_async.smtp.straight import Straight
from maildir_async.smtp.trace import trace_headers
from maildir_async.smtp.user_code import trouble

__all__ = ["MaildirHandler"]

TOO_MANY_RECIPIENTS: Final = "452 4.5.3 Too many recipients"

#: RFC 5321 §4.5.3.1.8: at least 100. A thousand links take some ten milliseconds.
MAX_RECIPIENTS: Final = 1000

log = logging.getLogger("maildir_async.smtp")

#: What messages are called in the trace: each unlike any other, though it can be guessed, and without a system call.
_ids: Final = random.Random()
os.register_at_fork(after_in_child=_ids.seed)


class MaildirHandler:
    """An aiosmtpd handler that delivers to maildirs. For aiosmtpd's own classes, and for the streaming ones.

    A message is written and synced once for each file system, and hard-linked to all its recipients there; one that
    two of the recipients' addresses share has it once. 250 means as durable as asked for. Nothing of the envelope gets
    into the message but what the options below say, and of other recipients nothing at all.

    Args:
        maildir: the path of one maildir, which gets everything; or a template such as
            ``/var/mail/{domain}/{user}/Maildir``; or a mapping of addresses to paths; or any callable that takes an
            address and returns a path, several, None for an unknown user, or an awaitable of these: see `Resolver`.
        newline: ``lf``, as is the custom in maildirs, or ``keep`` (CRLF, as it came).
        return_path: write ``Return-Path`` (RFC 5321 §4.4).
        delivered_to: write ``Delivered-To`` where there is one recipient with one maildir. As with Postfix's aliases
            it names the last address that an alias has led to.
        original_to: write ``X-Original-To`` where there is one recipient: what the client has written, be it an alias.
        received: write ``Received``.
        per_recipient_headers: write those two also where there are several recipients, each of whom then costs a
            write and a sync of his own.
        commit: the `GroupCommit` to share syncs in. By default one that refuses what it has no place for (451 4.3.2)
            rather than let the client wait. With the streaming classes a message has its place before the client is
            told to send it, and 1 MiB of ``max_pending_bytes``: by default 256 may be coming at once.
        durability: what a message survives once 250 has been said.
        create: whether a maildir that does not exist is made when its first message comes. Not what a template has
            before its first field, nor the directory that a mapping's maildir is in.
        require_mount: a directory that has to be a mount point: while it is none, every recipient gets a 451.
        file_mode: permission bits of message files.
        inherit_mode: take these, and owner and group, from the maildir's directory, as for `Maildir`.
        quota: what each maildir may hold, as for `Maildir`. Who has no room for more is refused at RCPT.
        detail_folder: ``existing`` has mail for ``alice+lists`` go to her folder ``lists`` where there is one, and
            ``create`` has it made. By what a resolver says with `Target`. None: a detail says nothing.
        junk_header: such as ``X-Spam-Flag: YES``; a message with that in its header goes to the folder ``Junk``. A
            ``*`` at the end of the value stands for anything.
        deadline: how long a message may take to be received, whoever is to blame: the last resort against sweepers, as
            for `Maildir.append`. How long a client may take is an option of the streaming servers.
        busy_wait: how long a message may wait for its place among the pending before 451 4.3.2; with a *commit*
            that waits, which without this has no bound.
        max_recipients: of one message.
        on_receipt: called on the loop with a `Receipt` for each recipient of each message, and each one refused.
        on_cut_off: called on the loop with one `CutOff` for each message that ended before it was whole, for which
            there are no receipts. Without it the logger ``maildir_async.smtp`` tells of them, at info.

    """

    def __init__(
        self,
        maildir: "str | os.PathLike[str] | Mapping[str, Goal | Sequence[Goal]] | Resolver",
        *,
        newline: Newline = "lf",
        return_path: bool = True,
        delivered_to: bool = True,
        original_to: bool = False,
        received: bool = True,
        per_recipient_headers: bool = False,
        commit: GroupCommit | None = None,
        durability: Durability = Durability.FULL,
        create: bool = True,
        require_mount: str | os.PathLike[str] | None = None,
        file_mode: int = 0o600,
        inherit_mode: bool = False,
        quota: Quota | None = None,
        detail_folder: DetailFolder | None = None,
        junk_header: str | None = None,
        deadline: timedelta = DEADLINE,
        busy_wait: timedelta = timedelta(0),
        max_recipients: int = MAX_RECIPIENTS,
        on_receipt: Callable[[Receipt], object] | None = None,
        on_cut_off: Callable[[CutOff], object] | None = None,
    ) -> None:
        resolver = resolver_of(maildir, create=create)
        mount = base_of(None, require_mount) if require_mount is not None else None
        kind = check_detail_folder(detail_folder)
        details = DetailFolders(kind) if kind is not None else None
        self._finder = Finder(resolver, lambda path: self.maildir(path), mount=mount, detail_folders=details)
        self._junk_header = JunkHeader(junk_header) if junk_header is not None else None
        self._rooted = resolver if isinstance(resolver, Rooted) else None
        self._newline: Newline = check_newline(newline)
        self._line_end = b"\n" if newline == "lf" else b"\r\n"
        self._deadline = check_deadline(deadline)
        for name, value in (
            ("return_path", return_path),
            ("delivered_to", delivered_to),
            ("original_to", original_to),
            ("received", received),
            ("per_recipient_headers", per_recipient_headers),
        ):
            check_bool(name, value)
        self._return_path = return_path
        self._delivered_to = delivered_to
        self._original_to = original_to
        self._received = received
        self._per_recipient = per_recipient_headers and (delivered_to or original_to)
        self._busy_wait_s = check_wait("busy_wait", busy_wait)
        self._commit = commit if commit is not None else GroupCommit(wait=self._busy_wait_s > 0)
        if self._busy_wait_s and not self._commit.waits:
            raise ValueError("busy_wait needs a GroupCommit(wait=True): another one refuses at once")
        self._new_maildir = partial(
            Maildir,
            create=create,
            require_mount=require_mount,
            durability=durability,
            file_mode=file_mode,
            inherit_mode=inherit_mode,
            quota=quota,
        )
        self._max_recipients = check_count("max_recipients", max_recipients, least=1)
        self._receipts = Receipts(check_callback("on_receipt", on_receipt), check_callback("on_cut_off", on_cut_off))
        self.maildir("/", self._commit)  # raises what is wrong with the options

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Return the handler for ``python -m aiosmtpd -c maildir_async.smtp.MaildirHandler DIR``."""
        if len(args) != 1:
            parser.error("MaildirHandler usage: DIR, or a template such as /var/mail/{domain}/{user}/Maildir")
        return cls(args[0])

    def maildir(self, path: "str | os.PathLike[str]", commit: GroupCommit | None = None) -> Maildir:
        """Return the maildir at *path*, as messages are delivered to it. May be overridden."""
        root = self._rooted.root_of(os.fspath(path)) if self._rooted is not None else None
        return self._new_maildir(path, create_below=root, commit=commit or self._commit)

    # aiosmtpd's hooks.

    async def handle_RCPT(  # noqa: N802 aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> str:
        """Find the maildir of a recipient: 250; 550 5.1.1 where there is none.

        And what the message would fail with there, as far as that can be seen: the others are to get it once, and not
        with each try for this one.
        """
        if len(envelope.rcpt_tos) >= self._max_recipients:
            return TOO_MANY_RECIPIENTS
        recipient = await self._finder.find(address, announced_size(envelope) or 0)
        if recipient.reply:
            self._receipts.tell(_nothing_received(client_of(session, envelope), recipient, recipient.reply))
            return recipient.reply
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(rcpt_options)
        _found(envelope)[address] = recipient
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Deliver a message that is whole in memory, as aiosmtpd's own classes have it."""
        delivery: MessageDelivery | None = None
        try:
            content = envelope.original_content
            if content is None:
                raise TypeError("the envelope has no content: MaildirHandler needs it, or a StreamingSMTP")
            protocol = transmission_type(server, session, envelope)
            delivery = await self.open_delivery(server, session, envelope, protocol=protocol, size=len(content))
            await delivery.send(content)
            replies = await delivery.finish()
        except Refused as exc:
            replies = [exc.reply] * len(envelope.rcpt_tos)
        except BaseException as exc:
            if delivery is not None:
                delivery.abort()
            # Not left to aiosmtpd, which has one reply for all, be it LMTP or not.
            replies = [await self.handle_exception(trouble(exc))] * len(envelope.rcpt_tos)
        return joined(replies) if isinstance(server, LMTP) else combined(replies)

    async def handle_exception(self, error: Exception) -> str:
        """Answer what nobody has foreseen: it may heal, and the client learns nothing of it."""
        log.error("a session failed", exc_info=error)
        return NOT_STORED

    # What the streaming classes ask for.

    async def open_delivery(
        self, server: SMTP, session: Session, envelope: Envelope, *, protocol: str, size: int | None
    ) -> MessageDelivery:
        """Begin with a message; see `maildir_async.smtp.delivery.DeliveryOpener`.

        `Refused` if none of its recipients could have it now, as far as that can be seen: a full disk, a maildir that
        is not there or may not be written to, no place in the queue. For SMTP also if one of them could not have it
        for now: the one reply would have the client come again for all of them, who would get it with each try.
        """
        found, finder, size = _found(envelope), self._finder, size or 0
        recipients: list[Recipient] = []
        replies: list[str] = []
        for address in envelope.rcpt_tos:
            recipient = found.get(address)
            if recipient is None:  # by a subclass's handle_RCPT
                recipient = await finder.find(address, size)
            elif not finder.is_in_order(recipient, size):
                recipient = await finder.look(recipient, size)
            recipients.append(recipient)
            if recipient.reply:
                replies.append(recipient.reply)
        client, one_reply = client_of(session, envelope), not isinstance(server, LMTP)
        if len(replies) == len(recipients) or (one_reply and any(reply.startswith("4") for reply in replies)):
            self._refuse(client, recipients, combined(replies))
        message_id = f"{_ids.getrandbits(64):016x}"
        # By what each maildir says of itself (an overridden maildir() may go by another path), and for each what the
        # message is told to be for. Where two addresses share one, its one copy names the first of them.
        parts: dict[Place, tuple[Maildir, tuple[str | None, str | None]]] = {}
        named = len(recipients) == 1 or self._per_recipient
        for recipient in recipients:
            if recipient.reply:
                continue
            original = recipient.address if named else None
            for maildir, name, folder in recipient.destinations:
                # Behind an alias each would need a copy of its own for this, as each of several recipients would.
                delivered = name if named and (self._per_recipient or len(recipient.destinations) == 1) else None
                parts.setdefault((maildir.path, folder), (maildir, (delivered, original)))
        prefixes: dict[tuple[str | None, str | None], bytes] = {}
        for _, names in parts.values():
            if names not in prefixes:
                prefixes[names] = trace_headers(
                    mail_from=client.mail_from,
                    helo=client.helo,
                    peer=(client.peer,),
                    hostname=server.hostname,
                    protocol=protocol,
                    message_id=message_id,
                    delivered_to=names[0] if self._delivered_to else None,
                    original_to=names[1] if self._original_to else None,
                    return_path=self._return_path,
                    received=self._received,
                    newline=self._line_end,
                )
        storing: Straight | FanOut | Sorted
        if len(parts) == 1:
            (((_, folder), (maildir, names)),) = parts.items()
            storing = Straight(maildir, prefixes[names], newline=self._newline, deadline=self._deadline, folder=folder)
        else:
            storing = FanOut(
                [maildir for maildir, _ in parts.values()],
                prefixes=[prefixes[names] for _, names in parts.values()],
                folders=[folder for _, folder in parts],
                newline=self._newline,
                deadline=self._deadline,
            )
        if self._junk_header is not None:
            storing = Sorted(storing, [maildir for maildir, _ in parts.values()], self._junk_header)
        try:
            if self._busy_wait_s:
                await self._open_in_time(storing)
            else:
                await storing.open()
        except BusyError as exc:
            self._refuse(client, recipients, exc.smtp_reply, exc)
        return MessageDelivery(client, message_id, recipients, list(parts), storing, self._receipts, server)

    def refuse_size(self, session: Session, mail_from: str, size: int, reply: str) -> None:
        """Called by the streaming classes when *reply* has refused a message at MAIL, for its announced *size*."""
        client = client_of(session, Envelope(), mail_from)
        self._receipts.tell_cut_off(CutOff(client, 0, "", size, 0.0, "announced too large", reply))

    async def _open_in_time(self, storing: "Straight | FanOut | Sorted") -> None:
        try:
            async with asyncio.timeout(self._busy_wait_s):
                await storing.open()
        except TimeoutError:
            raise busy_error() from None

    def _refuse(
        self, client: Client, recipients: Sequence[Recipient], reply: str, error: MaildirError | None = None
    ) -> NoReturn:
        for recipient in recipients:
            self._receipts.tell(_nothing_received(client, recipient, reply, error))
        raise Refused(reply) from None


def _found(envelope: Envelope) -> dict[str, Recipient]:
    """Return the recipients of this message that have been found, by address."""
    found: dict[str, Recipient] = envelope.__dict__.setdefault("maildir_recipients", {})
    return found


def _nothing_received(client: Client, recipient: Recipient, reply: str, error: MaildirError | None = None) -> Receipt:
    return Receipt(
        client=client,
        address=recipient.address,
        maildir=recipient.path,
        message_id="",
        size=0,
        seconds=0.0,
        reply=reply,
        delivered=None,
        error=recipient.error or error,
    )
