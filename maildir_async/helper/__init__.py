"""The other process that writes for a loop that has no time for its threads."""
