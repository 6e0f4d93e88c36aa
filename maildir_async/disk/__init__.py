"""The file system, by blocking calls. No asyncio."""
