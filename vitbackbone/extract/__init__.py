"""Images in, a feature store out, nothing lost."""

from vitbackbone.extract.manifest import weights_sha256
from vitbackbone.extract.run import extract
from vitbackbone.extract.store import FeatureStore

__all__ = ["FeatureStore", "extract", "weights_sha256"]
