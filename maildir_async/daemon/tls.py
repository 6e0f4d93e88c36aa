"""TLS of the daemon: a certificate that is read again at SIGHUP. Blocks, but for what is in a connection."""

import ssl
from typing import Final

__all__ = ["HANDSHAKE_S", "Tls"]

#: Seconds for a handshake.
HANDSHAKE_S: Final = 30.0


class Tls:
    """What connections are secured by.

    Args:
        cert: path of the certificate with its chain, in PEM.
        key: path of its key, in PEM; None if that is in the same file.

    Attributes:
        paths: of what is read.

    """

    def __init__(self, cert: str, key: str | None) -> None:
        self.paths = (cert,) if key is None else (cert, key)
        self._cert = cert
        self._key = key
        self._context: ssl.SSLContext | None = None

    @property
    def context(self) -> ssl.SSLContext:
        """What secures connections that begin now. RuntimeError before the first `load`."""
        if self._context is None:
            raise RuntimeError(f"{self.paths[0]} has not been loaded")
        return self._context

    def read(self) -> ssl.SSLContext:
        """Return what the files have now. ValueError if that is wrong, OSError if they cannot be read."""
        # TLS 1.2 and 1.3 with OpenSSL's own choice of ciphers: RFC 9325 §3.1.1, §4.2.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        for path in self.paths:
            with open(path, "rb"):  # OpenSSL does not say which of the two it could not read
                pass
        try:
            # A key with a passphrase is not asked for at a terminal.
            context.load_cert_chain(self._cert, self._key, password=lambda: b"")
        except ssl.SSLError as exc:
            what = "the certificate and the key do not match" if "MISMATCH" in str(exc.reason) else exc
            raise ValueError(f"--tls-cert: {' and '.join(self.paths)}: {what}") from None
        return context

    def take(self, context: ssl.SSLContext) -> None:
        """Have new connections secured by *context*. Those that there are go on as they are."""
        self._context = context

    def load(self) -> None:
        """Read the files, and use what they have. Raises what `read` does: then all stays as it was."""
        self.take(self.read())
