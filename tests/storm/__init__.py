"""Storms: ``python -m tests.storm [--full] [--seed N]``: thousands of schedules of all that can happen at once.

The model. A *schedule* is a list of steps, drawn from a seed (`schedules`). The first says what world there is: one to
three maildirs, there already or to be made; a quota, tight or wide; a duplicate filter; few places among the pending;
one group commit or two; syncs by threads, by the kernel, by ``syncfs``; or a helper process. Each further step is one
of these (`world`, `deliveries`):

* a message begins to be delivered: whole, by an `AppendTask`, by hand, by a producer that pushes or is asked, by an
  iterable, to all maildirs at once; or several, with and without ``atomic``. With folders, keywords, flags, weaker
  durability, a key; on either of two event loops, one of them in another thread, with the same objects;
* a stream gets its next piece, its end, or its source fails;
* a delivery is cancelled: once, again and again, by an anyio scope, by a timeout;
* the loops take a few turns, or so many that nothing moves any more; a loop is closed under what is on it;
* the n-th call of some kind fails with some errno, before or after it is done, once or from then on; hangs until a
  later step; is slow; writes less than it was given. What hangs is left behind after 8 ms;
* a mail reader moves what is in ``new/`` to ``cur/``, or removes some; ``tmp/`` is swept, of all that is there; the
  maildir is closed; the process forks, and the child delivers by the same objects and is gone; another process
  delivers meanwhile, and may be killed; the helper process is killed.

Then all gates are opened, all faults healed, all streams ended, and one checker looks (`checker`):

* a message is whole, or not there; in the folder that it was for, once;
* what was told as delivered is there, or was removed by the reader, who saw it; what was told as failed or taken back
  is not; what is uncertain is. `AppendTask.future` says of a cancelled one which it was. What is told as a duplicate is
  one. Of a transaction all is there, or nothing. Nothing comes after its delivery has ended;
* what was told as durable was synced before it was published, and its directory after that (not seen in the helper,
  nor of what the kernel syncs: power cuts have a rig of their own);
* a producer was stopped once at most, and never if it had ended;
* ``tmp/`` is empty, but for what belongs to a killed process, and there is no lock; ``maildirsize`` says what is there;
* all places among the pending are free, and nothing is in flight or reserved;
* descriptors, threads, and the library's own objects in memory are what they were; no task is left; no loop was told of
  an exception, and no thread has died by one. The maildir takes one more message.

Is it deterministic? The steps are, and so is what the two loops do between two of them. Faults and gates come in
through the `Disk` (`disk`), by counting calls. But in which order the library's own threads come to their calls is
not fixed where a step lets several run: a seed that has failed may need some runs to fail again, and one that is right
is another storm each time. `--seed N` tries, and shrinking tries each candidate twice (`shrinking`): steps are left
out, then options, while it still fails; what is left is printed as a test for ``tests/test_storm.py``.

Not all is the library's. anyio keeps what is in a scope of its own when the loop vanishes, for good, and asyncio's
queues speak of the closed loop when they are thrown away: the rig lets go of the one, and does not listen to the other.
A reader that removes mail removes ``maildirsize`` too, as there is no other way for it to be right at each moment. A
disk never says of a file that is there that it is gone. And with an ``unlink`` that fails ``tmp/`` is not looked at.

It proves itself (`planted`): broken on purpose, in seven ways, the library is found out by the short form each time.
"""
