"""Positions as pure functions: fixed sinusoids, rotary angles, relative indices, and resampling to another grid."""
