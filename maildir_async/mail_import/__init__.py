"""Mail of other formats, read and imported."""
