"""Backbones as the detectors and segmenters of other libraries take them, one module a library."""
