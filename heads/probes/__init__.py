"""Probes: classifiers on frozen features, which measure how good the features are."""
