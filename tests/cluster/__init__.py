"""One mailbox, several machines: writers on several mounts of a replicated GlusterFS volume whose bricks are killed.

``python -m tests.cluster`` takes root and Debian's ``glusterfs-server``: a minute at most, and ``--full`` three.

The model
---------
*Machines* are stood for by mounts: each is a client of GlusterFS by itself, with caches, connections and locks of its
own, and two writer processes deliver on each. No mount knows of the others but by the bricks, as machines would not.
All writers say the same ``hostname``, since containers often have one name; what keeps their names apart is the rest.

*The store* is three bricks of one volume, ``replica 3``, on one real disk, with a quorum of two (GlusterFS's default).
Bricks are killed (SIGKILL: the kernel closes their connections at once), frozen (SIGSTOP: only a time-out tells, the
volume's ``network.ping-timeout``), and started again, which heals them while mail goes on. In the long form two are
killed at once: then nothing can be written, and mail has to fail for now rather than be lost.

*Mail* is bytes, streams, folders that all writers make at once, keywords (one ``dovecot-keywords`` for all, under one
lock), one quota (one ``maildirsize`` for all) and fan-out to two maildirs. Each message says what it has to be, and a
writer notes what was acknowledged on a disk of its own, after that.

*The judgement* is made by a mount that has had no part in it, and on each brick by itself. An acknowledged message is
there once, whole, in its folder, with its keywords. While two bricks are there nothing is refused, but for what the
rig counts: a message whose keywords' lock another had for ten seconds, on a disk that is so slow, and one for which the
store says that it has no quorum (ENOTCONN). What was refused is not there, but for what was refused so by its rename:
one brick may have renamed, nobody could look, and the heal may keep that; it is counted. What was neither (its outcome
was uncertain) may be. No key is there twice, ``tmp/`` is empty, ``heal info`` is clean, and the three bricks hold the
same.

The first brick is killed when each writer has delivered mail of each kind. What several machines make of a directory
while a brick dies is GlusterFS's: it has been seen without a quorum until it had healed, with two bricks there.

``maildirsize`` has no lock. While machines deliver at once it may be away at any time: who is in doubt of it removes
it, a count during which others deliver is not kept, and who has counted without leaving a file does not count again for
five seconds. So when all writers have ended and the bricks have healed, one more process comes, on a mount of its own,
with one message and knowing nothing: it finds a file, or counts, and what it counts is kept. After it there is a file.
It never counts a message twice. What it does not know of was recorded in a file that another machine was about to
replace by its count: as much as can be under way at once, and it is told how much.

What this is not: no power is cut, no packet is lost or late, and a brick's disk never loses what it has synced. All of
it is one kernel and one clock.

Everything is in namespaces of mounts, network, host name and processes of their own, and in a temporary directory.
Servers are ended by their ids; were one forgotten, it ends with the first process of its namespace, and is a fault.
"""
