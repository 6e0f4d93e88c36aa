"""Tests of the tests: ``python -m tests.mutations [--only NAME] [--every N]``.

The model: a promise rests on a line, and a test holds that line. So each line of `lines` is broken, one at a time, in a
copy of the tree, and its test is run: it has to fail. On the tree as it is, the same tests pass, which is looked at
first. A line that can be broken without a test that fails is a promise that nobody keeps.

Not covered: what takes two lines to break, and all other lines. It is a list of what would hurt most, not a measure.
"""
