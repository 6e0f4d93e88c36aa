"""Real mail servers around the daemon: ``python -m tests.servers``; Postfix before it, Dovecot behind it."""
