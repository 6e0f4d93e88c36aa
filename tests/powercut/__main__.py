"""The command: ``python -m tests.powercut [--full] [--only ext4]``. Exit code 1 if anything is not as it should be."""

import sys

from .command import main

sys.exit(main())
