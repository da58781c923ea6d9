"""Positions: the layers that add them to patches, sinusoids, rotary angles, relative indices, and their resampling."""
