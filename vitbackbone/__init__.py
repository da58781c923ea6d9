"""Features out of Vision Transformers: one typed output for every family, right to the digit, at any image size."""

import lazy_loader

__version__ = "0.1.0"

# The names are listed in `__init__.pyi`. A package is imported when one of its names is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
