"""The same features, sooner: the fast routes of each machine, and the choice among them."""

from vitbackbone.runtime.int8 import Steps, Weights, int8_trouble, onednn
from vitbackbone.runtime.linears import PackedLinear, trouble
from vitbackbone.runtime.optimize import IDLE, SAMPLE, optimize, rebuild

__all__ = [
    "IDLE",
    "SAMPLE",
    "PackedLinear",
    "Steps",
    "Weights",
    "int8_trouble",
    "onednn",
    "optimize",
    "rebuild",
    "trouble",
]
