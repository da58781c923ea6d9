"""A cache for tables of positions, which tracers and autograd may use."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def cached(count: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Cache the latest `count` results of a function whose arguments are plain values.

    Nothing is cached while a graph is traced, and neither are stand-ins for tensors, such as fake tensors.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        results: dict[object, R] = {}

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            result = results.get(args)
            if result is None:
                with torch.inference_mode(False), torch.no_grad():  # autograd cannot use inference tensors later
                    result = function(*args, **kwargs)
                if type(result) in (Tensor, np.ndarray):
                    while len(results) >= count:
                        results.pop(next(iter(results)), None)  # another thread may have taken it
                    results[args] = result
            return result

        return call

    return decorate
