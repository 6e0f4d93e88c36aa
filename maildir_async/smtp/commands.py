"""The command lines of a session: read to their end, and refused where they are none."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from maildir_async.smtp.replies import BARE_LF, COMMAND_TOO_LONG, NOT_READ, SHUTTING_DOWN, TOO_MANY_ERRORS
from maildir_async.smtp.sessions import COMMAND_SIZE, LastingSMTP

__all__ = ["CommandSMTP"]

CRLF: Final = b"\r\n"

#: Commands that a client has answered in one go, if it sends them so, before others get a turn of the loop. Arbitrary;
#: a turn costs about as much as a command.
COMMANDS_A_TURN: Final = 16

#: What nearly all command lines begin with, before the first space, and the command that it is.
_WORDS: Final = {
    octets + end: octets.decode()
    for octets in (b"MAIL", b"RCPT", b"DATA", b"BDAT", b"RSET", b"QUIT")
    for end in (b"", b"\r\n")
}


class CommandSMTP(LastingSMTP):
    """The part of `StreamingSMTP` that reads command lines. Takes what `LastingSMTP` does."""

    def __init__(self, handler: Any, **options: Any) -> None:
        self._commands_read = 0
        super().__init__(handler, **options)

    def _next_command(self) -> Coroutine[Any, Any, bytes]:
        return self._next_line()

    async def _next_line(self) -> bytes:
        while True:
            line = await self._read_line()
            word = line.partition(b" ")[0]
            command = _WORDS.get(word)
            if command is None or len(line) > COMMAND_SIZE or line[-2:] != CRLF:
                self._command = command = word.strip().decode("ascii", "replace").upper() or "?"
                # What is read before the greeting is no command: aiosmtpd's own PROXY header.
                refusal = self._refusal(line, word) if self._is_greeted else None
                if refusal is not None:
                    await self.push(refusal)
                    continue
            self._line, self._command = line, command
            return line

    async def _read_line(self) -> bytes:
        """Return the client's next line; of one that the reader has no room for the beginning, without a line end."""
        if self._is_ending and not self._is_mid_message():
            self._end(SHUTTING_DOWN)
        if self._errors >= self._max_errors:
            self._end(TOO_MANY_ERRORS)
        self._commands_read += 1
        if self._commands_read % COMMANDS_A_TURN == 0:
            await asyncio.sleep(0)
        reader: Any = self._reader
        self._line = b""
        self._waits_for_command = True
        try:
            line: bytes = await reader.line()
        except asyncio.LimitOverrunError as exc:
            line = await self._from_client(reader.drop_line(exc.consumed))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._gone()
        finally:
            self._waits_for_command = False
        return line

    def _refusal(self, line: bytes, word: bytes) -> str | None:
        """Return what is said to a *line* that is no command, which has been read to its end; None if it may be one.

        It is refused here, and not by aiosmtpd, so that it is forgotten as a whole: nothing in it is obeyed.
        """
        size, command = len(line.rstrip(CRLF)), self._command
        is_extended = self.session is not None and self.session.extended_smtp
        if size > COMMAND_SIZE and size > (self.command_size_limits[command] if is_extended else COMMAND_SIZE):
            return COMMAND_TOO_LONG
        if line[-2:] != CRLF and not self._accept_bare_lf:
            # RFC 5321 §2.3.8: a line ends with CRLF and with nothing else. A server that takes LF for a line end takes
            # for a command what is part of a longer line to others.
            if command == "BDAT":
                self._end(NOT_READ)  # its octets come next, however it is answered
            return BARE_LF
        if word.isascii() and word.strip(CRLF) and word.rstrip(CRLF).decode().upper() not in self._smtp_methods:
            return f'500 5.5.1 Error: command "{word.rstrip(CRLF).decode().upper()}" not recognized'
        return None
