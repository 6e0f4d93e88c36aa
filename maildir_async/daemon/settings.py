"""What the daemon is to do, once everything that was said about it has been read and is right."""

from dataclasses import dataclass
from typing import Final

from maildir_async.daemon.sockets import Address, PassedAddress
from maildir_async.format.content import Newline
from maildir_async.format.delivered import Durability
from maildir_async.format.options import DetailFolder

__all__ = ["ListenerSettings", "Settings"]

#: Where a peer has no address: at a Unix socket.
UNIX: Final = "unix"


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """One place where mail comes in.

    Attributes:
        address: where to listen; None for all sockets that systemd has passed.
        lmtp: whether LMTP is spoken, else SMTP.
        socket_mode: permission bits of a Unix socket.
        implicit_tls: whether a connection begins with TLS.
        require_tls: whether a client has to say STARTTLS.
        proxy_protocol: networks from which a PROXY header comes first.
        trusted_peers: networks whose XCLIENT and XFORWARD are taken.

    """

    address: Address | PassedAddress | None
    lmtp: bool
    socket_mode: int
    implicit_tls: bool
    require_tls: bool
    proxy_protocol: tuple[str, ...]
    trusted_peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it. One of `layout`, `map` and `resolver` is given, or `layout` with `map`.

    Attributes:
        listeners: where mail comes in.
        config: path of the file that some of this comes from, or None.
        check_config: whether to look at everything, and serve nothing.
        layout: template of the maildirs' paths.
        users: path of the file of addresses there are, if only these are.
        map: path of the file of addresses, and maildirs or other addresses; with a layout, it is asked first.
        resolver: ``module:callable`` that finds the maildirs.
        domains: those whose addresses are taken; None for any.
        recipient_delimiter: characters between user and detail; "" for none.
        detail_folder: which folders a detail names; None for none.
        junk_header: the header field of what goes to ``Junk``, as `maildir_async.format.junk.JunkHeader` takes it.
        postmaster: the address that gets mail to postmaster, if nobody else is it.
        require_mount: a directory that has to be a mount point for mail to be taken.
        create: whether a user that no file lists exists also without a maildir.
        durability: what a message survives once it is acknowledged.
        size_limit: bytes of a message; None for no limit.
        line_length_limit: bytes of a line of a message, CRLF included; None for no limit.
        max_connections: connections at once, in all workers.
        max_connections_per_address: connections of one client at once, in all workers; None for no limit.
        max_in_flight: messages at once, in all workers.
        busy_wait_s: seconds that a message waits for a place among those at once.
        max_errors: refused commands of a session, after which it is ended.
        accept_bare_lf: whether a command line may end with LF alone.
        timeout_s: seconds for a command, and of silence, after which a client is sent away.
        message_timeout_s: seconds for a message to come, after which the client is sent away.
        drain_timeout_s: seconds for messages under way when the daemon is to end.
        workers: how many processes.
        user, group: whose privileges the daemon has once it listens; None for those it was started with.
        allow_root: whether these may be root's.
        tls_cert, tls_key: paths of the certificate with its chain, and of the key, in PEM; None for no TLS.
        pidfile: where the main process writes its id.
        helper_process: whether each worker has a helper process write to the disk.
        metrics: where Prometheus finds the metrics.
        metrics_mode: permission bits of a Unix socket for them.
        log_level: what is less than this is not told.
        hostname: what the daemon calls itself.
        ident: what the greeting says after that.
        newline: ``lf`` or ``keep``.
        return_path, delivered_to, original_to, received: which trace headers are written.
        quota: what each maildir may hold, as `maildir_async.format.quota.limits_of` takes it.
        quota_permanent: whether a message that is too much for that is refused for good.
        inherit_mode: whether messages have owner, group and mode from their maildir's directory.
        per_recipient_headers: whether those that differ are written also where there are several recipients.

    """

    listeners: tuple[ListenerSettings, ...]
    config: str | None
    check_config: bool
    layout: str | None
    users: str | None
    map: str | None
    resolver: str | None
    domains: tuple[str, ...] | None
    recipient_delimiter: str
    postmaster: str | None
    require_mount: str | None
    create: bool
    inherit_mode: bool
    detail_folder: DetailFolder | None
    junk_header: str | None
    quota: str | None
    quota_permanent: bool
    durability: Durability
    size_limit: int | None
    line_length_limit: int | None
    max_connections: int
    max_connections_per_address: int | None
    max_in_flight: int
    busy_wait_s: float
    max_errors: int
    accept_bare_lf: bool
    timeout_s: float
    message_timeout_s: float
    drain_timeout_s: float
    workers: int
    user: str | None
    group: str | None
    allow_root: bool
    tls_cert: str | None
    tls_key: str | None
    pidfile: str | None
    helper_process: bool
    metrics: Address | None
    metrics_mode: int
    log_level: str
    hostname: str
    ident: str
    newline: Newline
    return_path: bool
    delivered_to: bool
    original_to: bool
    received: bool
    per_recipient_headers: bool
