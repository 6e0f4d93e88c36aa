"""What the system does to a delivery from outside: ``python -m tests.traced [--full] [--rig RIG] [--only NAME]``.

**Kills** (`kills`). The model: a process may be killed between any two of its system calls, and nothing of what it had
in memory is left; what the kernel had been told is. So a real program, a fork of this one that uses the library as any
program does, is stopped before it begins, strace(1) takes hold of it, and SIGKILL comes instead of the N-th call of one
kind in a thread: for each kind that touches the disk, and each N until the program ends before it gets that far.
strace counts by thread, so where two threads make the same calls, the later one is not met at each of its own; the
summary says at how many different calls there was a kill. Then another process, which knows nothing of the first,
delivers to what that has left. What is looked at is in `checks`. The page cache survives a process: what a *power cut*
takes is not told here.

**Faults** (`faults`). The model: any call that touches the disk may return any error that its manual page has, once, or
from then on; strace puts the error in its place, and the call is not made. (What it does when it *is* made and told as
failed is asked by the library's own `FaultDisk`.) Kernel AIO has no such call, since its errors come from the disk.
So those, and a disk that is really full or read-only, are had from the kernel itself.

**Real faults** (`real`). Those cases: a full ext4, of blocks and of inodes; a Btrfs quota; an ext4 that becomes
read-only under load; a disk that errs (``baddisk.c``, a FUSE file system under a loop device) where a message's own
bytes are, or that takes nothing any more; ``fs.aio-max-nr`` used up; RLIMIT_NOFILE, RLIMIT_FSIZE and RLIMIT_AS. While
the fault is there an error of the package tells of it, and nothing is left behind; when it is gone the next delivery
works, and all that was acknowledged is there. They take root, and say so where they cannot run.

Not covered: quotas of ext4 and XFS (few kernels of virtual machines have them; EDQUOT is had from Btrfs, and by strace
from every call), a device mapper's errors, a kernel that runs out of memory by itself.
"""
