"""What the log tells of messages: one line for each recipient, or one for a message that never was whole."""

from typing import Final

from maildir_async.daemon.log import Log
from maildir_async.smtp.message import CutOff, Receipt

__all__ = ["tell_cut_off", "tell_receipt"]

#: What may be a fault of the site's is a warning.
_LEVELS: Final = {"delivered": "info", "deferred": "warning", "refused": "info"}


def tell_receipt(log: Log, slot: int, receipt: Receipt) -> None:
    """Write what has become of a message for one recipient, in worker *slot*."""
    done = receipt.delivered
    log.event(
        _LEVELS[receipt.verdict],
        receipt.verdict,
        worker=slot,
        id=receipt.message_id,
        peer=receipt.client.peer,
        helo=receipt.client.helo,
        **{"from": f"<{receipt.client.mail_from}>"},
        to=receipt.address,
        maildir=receipt.maildir,
        key=done and done.key,
        size=done.size if done else receipt.size or None,
        wire_size=done and done.wire_size,
        durability=done and done.durability.value,
        queued_s=done and done.queued_s,
        commit_s=done and done.commit_s,
        seconds=receipt.seconds if receipt.message_id else None,
        reply=receipt.reply or None,
        warnings=done and done.warnings,
        error=receipt.reason or None,
    )


def tell_cut_off(log: Log, slot: int, cut_off: CutOff) -> None:
    """Write that a message ended before it was whole, in worker *slot*."""
    log.event(
        "info",
        "cut_off",
        worker=slot,
        id=cut_off.message_id or None,
        peer=cut_off.client.peer,
        helo=cut_off.client.helo,
        **{"from": f"<{cut_off.client.mail_from}>"},
        recipients=cut_off.recipients,
        size=cut_off.size or None,
        seconds=cut_off.seconds,
        reason=cut_off.reason,
        reply=cut_off.reply or None,
    )
