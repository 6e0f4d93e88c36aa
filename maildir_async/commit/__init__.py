"""Group commit: whole messages share their syncs."""
