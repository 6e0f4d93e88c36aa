"""Power cuts on real file systems: ``python -m tests.powercut [--full] [--only ext4]``, as root, on Linux.

The model. A file system lies on a disk that keeps a log of every write and every flush (`recorder.c`, by FUSE, below a
loop device without a cache of its own). A program delivers (`workload`), and puts into the same log that a message is
acknowledged, before it does anything else. The power may go between any two records of the log. What the disk has
then is everything that it had answered for before it was sent the last flush; of what it was sent after that, any
part, in any order: each write wholly, not at all, or some of its sectors. Such states are drawn (`states`), made,
mounted, whereby the journal recovers, and looked at (`checking`):

* a message that was acknowledged before the cut is in its place, and each byte of it is right;
* whatever is visible in ``new/`` or ``cur/`` is whole;
* keywords mean what they meant, and an import run anew comes to what it would have come to;
* each maildir takes a message at once, lists it, and can be swept.

It is an adversary within a file system's own rules, not beyond them. The flushes are honoured. A sector is written
whole: 512 bytes for XFS, 1,024 for ext4 and 4,096 for Btrfs, whose superblocks have so many and are not looked for
elsewhere. No bit rots. And what a journal keeps in order anyway is never seen out of order: a parent directory that
is never synced is hidden by each of these three. That is held against a pessimist's model of the system calls.

That it would notice is shown each time: with the file's sync, the directory's sync, or the order of sync and rename
taken out of the program (`partly.PartlyDisk`), losses and torn messages must be found. Of the levels that promise
less, `Durability.FILE` must lose the newest, and tear none; `Durability.NONE` may tear too; neither may touch what the
system has synced by itself meanwhile.
"""
