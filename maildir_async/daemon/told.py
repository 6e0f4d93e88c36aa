"""What the log tells of messages: one line for each recipient."""

from typing import Final

from maildir_async.daemon.log import Log
from maildir_async.smtp.message import Receipt

__all__ = ["tell_receipt"]

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
