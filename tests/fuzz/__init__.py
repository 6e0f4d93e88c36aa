"""Fuzzing by hand: ``python -m tests.fuzz TARGET``, where TARGET is a module here with a function ``target(data)``.

A target takes any octets, and raises if what the code under test makes of them is wrong. It needs no fuzzer:
``tests/test_fuzz.py`` calls each one with a few inputs.
"""
