"""Mixed load for a long time, with faults in turn: ``python -m tests.soak [--full | --seconds N]``, as root, on Linux.

The model. A process that delivers for months must end each hour as it began it. So a program (`program`) delivers in
each way there is, about two hundred messages a second, on an ext4 of its own with direct I/O below it: bytes, streams,
folders, keywords, a quota, fan-out, transactions, SMTP; some are cancelled at any moment, some aborted; a second
`GroupCommit` has a helper process; now and then it forks, sweeps, holds an index, watches. One fault after the other
(`faults`) has a few seconds: the disk is full, read-only, slow, hangs, fails; there are no descriptors; a maildir is
moved away; the helper is killed. Another process (`reader`) is the mail reader: it meets each message, checks each
byte, moves it to ``cur/``, and deletes it after ten seconds. What is wrong (`verdict`):

* an acknowledged message that was never there, is not whole, or is there twice; a refused one that is there; a file in
  ``tmp/`` at the end (what killed helpers left is swept first, and counted);
* growth. After each fault and some seconds of calm nothing new begins until nothing is under way and idle threads have
  had their time; then the program is measured. A thread of the library's crews that is there all the same is wrong in
  itself. How many threads there were at least in the calm, while mail flowed, is measured too. The first quarter of
  these rests is the warm-up. The median of the last quarter may be above that of the second by no more than
  `verdict.ALLOWED` of memory, descriptors, threads and tasks (`verdict.ALLOWED_SHORT` in a run shorter than ten
  minutes), and by no more than `verdict.ALLOWED_OBJECTS` objects of each type that the garbage collector knows. A
  short run goes on until it has had `verdict.FEWEST` rests, for two minutes more if need be;
* anything that the program itself finds: an exception that is not the package's, a task that does not end.

Latencies and the loop's lag are told, by the minute, and not judged: a busy machine is no fault of the library.

``--million`` (`million`) is another question: whether a delivery costs more in a maildir that has a million messages.
"""
