"""Mail servers with aiosmtpd: a handler that delivers to maildirs, and SMTP and LMTP that stream to the disk.

Needs the extra ``maildir-async[smtp]``.
"""

from maildir_async.smtp.aliases import Aliases
from maildir_async.smtp.clients import read_proxy_header
from maildir_async.smtp.delivery import Delivery, DeliveryOpener, Refused
from maildir_async.smtp.handler import MaildirHandler
from maildir_async.smtp.hostname import own_name
from maildir_async.smtp.layout import Layout
from maildir_async.smtp.maps import AddressMap, MapFile
from maildir_async.smtp.message import Client, CutOff, Receipt
from maildir_async.smtp.proxied import Networks, ProxyHeaderError
from maildir_async.smtp.recipients import Resolver, Target
from maildir_async.smtp.site import Site
from maildir_async.smtp.streaming import StreamingLMTP, StreamingSMTP
from maildir_async.smtp.tables import UserFile

__all__ = [
    "AddressMap",
    "Aliases",
    "Client",
    "CutOff",
    "Delivery",
    "DeliveryOpener",
    "Layout",
    "MaildirHandler",
    "MapFile",
    "Networks",
    "ProxyHeaderError",
    "Receipt",
    "Refused",
    "Resolver",
    "Site",
    "StreamingLMTP",
    "StreamingSMTP",
    "Target",
    "UserFile",
    "own_name",
    "read_proxy_header",
]
