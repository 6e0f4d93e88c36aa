"""The command `maildir-async`."""
