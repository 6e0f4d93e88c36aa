"""Whether a file system may be changed by other machines, or a server, behind this kernel's back. Blocks."""

import ctypes
import os
import sys
from typing import Final

__all__ = ["is_shared"]

#: File systems whose inotify tells only of what goes through this kernel: statfs(2) and linux/magic.h have the numbers.
_SHARED: Final = frozenset({
    0x00006969,  # NFS
    0x0000517B,  # SMB
    0xFF534D42,  # CIFS
    0xFE534D42,  # SMB 2 and later
    0x65735546,  # FUSE: sshfs, GlusterFS, s3fs
    0x00C36400,  # Ceph
    0x01021997,  # 9P
    0x5346414F,  # AFS
    0x6B414653,  # AFS of the kernel
    0x73757245,  # Coda
    0x01161970,  # GFS2
    0x7461636F,  # OCFS2
    0x0BD00BD0,  # Lustre
    0x47504653,  # GPFS
    0x786F4256,  # a folder of VirtualBox's host
})  # fmt: skip

_libc: Final = ctypes.CDLL(None, use_errno=True)


def is_shared(path: str) -> bool:
    """Whether *path* is on a file system of a network, or of another process (FUSE). False where it cannot be told."""
    if sys.platform != "linux":
        return False
    answer = ctypes.create_string_buffer(512)  # struct statfs has 120 bytes, and begins with f_type, a long
    if _libc.statfs(os.fsencode(path), answer):
        return False
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF in _SHARED
