"""An SMTP server by aiosmtpd's Controller, in a thread of its own: ``controller.py PORT MAILDIR``.

The controller cannot take port 0: it connects to its own port to see whether it serves.
"""

import argparse
import signal

from aiosmtpd.controller import Controller

from maildir_async.smtp import MaildirHandler, StreamingSMTP


class StreamingController(Controller):
    """aiosmtpd's Controller whose messages go to disk while they arrive."""

    def factory(self) -> StreamingSMTP:
        return StreamingSMTP(self.handler, **self.SMTP_kwargs)


def main(port: int, maildir: str) -> None:
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before there are threads: they are waited for below
    controller = StreamingController(MaildirHandler(maildir), hostname="127.0.0.1", port=port)
    controller.start()
    print(controller.hostname, controller.port, flush=True)
    signal.sigwait(signals)
    controller.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("maildir")
    options = parser.parse_args()
    main(options.port, options.maildir)
