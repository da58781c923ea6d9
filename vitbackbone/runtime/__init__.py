"""Faster routes to the same features, and the choice of the fastest on this machine."""

from vitbackbone.runtime.choice import IDLE, SAMPLE, optimize, rebuild
from vitbackbone.runtime.int8 import Int8Weights, Steps, int8_trouble, onednn
from vitbackbone.runtime.kernels import PackedLinear, trouble

__all__ = [
    "IDLE",
    "SAMPLE",
    "Int8Weights",
    "PackedLinear",
    "Steps",
    "int8_trouble",
    "onednn",
    "optimize",
    "rebuild",
    "trouble",
]
