"""Images in, a feature store out, nothing lost."""

from vitbackbone.extract.export import export
from vitbackbone.extract.ray_engine import RayOptions
from vitbackbone.extract.run import extract
from vitbackbone.extract.store import FeatureStore
from vitbackbone.extract.verify import verify

__all__ = ["FeatureStore", "RayOptions", "export", "extract", "verify"]
