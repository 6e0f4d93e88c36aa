"""``python -m maildir_async`` is the command ``maildir-async``."""

import sys

from maildir_async.command.main import main

if __name__ == "__main__":
    sys.exit(main())
