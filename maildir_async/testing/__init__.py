"""For tests, users' as well as ours: disks that fail or lose power, and checks that any producer must pass.

::

    disk = FaultDisk(Fault("sync", errno.EIO, nth=2))
    maildir = Maildir(path, disk=disk)
"""

from maildir_async.testing.crash import CrashDisk
from maildir_async.testing.faults import Call, Fault, FaultDisk
from maildir_async.testing.producers import check_pull_producer, check_push_producer

__all__ = ["Call", "CrashDisk", "Fault", "FaultDisk", "check_pull_producer", "check_push_producer"]
