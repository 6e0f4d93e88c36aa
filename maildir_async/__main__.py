"""``python -m maildir_async`` is the command ``maildir-async``."""

from maildir_async.command.main import run

if __name__ == "__main__":
    run()
