"""Images in, a feature store out, nothing lost."""

from vitbackbone.extract.run import extract
from vitbackbone.extract.store import FeatureStore

__all__ = ["FeatureStore", "extract"]
