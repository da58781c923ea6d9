"""The metrics: pure functions on arrays, one file each."""
