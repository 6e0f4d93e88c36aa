"""What a Maildir looks like, as values: names, sizes, options, states. No I/O, no asyncio."""
