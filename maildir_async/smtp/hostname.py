"""The name of this host, as the greeting and Received headers give it."""

import logging
import socket
from functools import cache
from typing import Final

__all__ = ["own_name"]

log: Final = logging.getLogger("maildir_async.smtp")

LABEL_MAX: Final = 63  # octets, RFC 1035 §2.3.4


@cache
def own_name() -> str:
    """Return this host's full name. May ask the DNS; what it has answered once is kept.

    A host name that cannot be a domain (a label that is empty or has more than 63 octets) makes `socket.getfqdn` raise
    UnicodeError, out of Python's IDNA codec. Such a name is mended, with a warning: mail has to go on.
    """
    try:
        return socket.getfqdn()
    except UnicodeError:
        name = socket.gethostname()
        mended = ".".join(label[:LABEL_MAX] for label in name.split(".") if label) or "localhost"
        log.warning("the host name %r is no domain name; %r is used instead", name, mended)
        return mended
