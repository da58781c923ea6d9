"""Adapters of backbones to the models of other libraries, one module for each library."""
