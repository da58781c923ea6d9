"""Fuzzing: seeded, mutated files through every reader. `make fuzz`, or `python -m tests.fuzz --help`."""
