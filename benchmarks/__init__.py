"""Benchmarks of maildir_async beside its peers and the floor. See README.md in this directory."""
