"""The feature store: images to features on disk, with nothing lost."""

from vitbackbone.store.export import export
from vitbackbone.store.groups import copies, groups_by
from vitbackbone.store.photos import ReadPhoto, originals, read_photos
from vitbackbone.store.ray_engine import RayOptions
from vitbackbone.store.run import extract
from vitbackbone.store.slices import Part
from vitbackbone.store.source import list_inputs
from vitbackbone.store.store import FeatureStore
from vitbackbone.store.verify import verify

__all__ = [
    "FeatureStore",
    "Part",
    "RayOptions",
    "ReadPhoto",
    "copies",
    "export",
    "extract",
    "groups_by",
    "list_inputs",
    "originals",
    "read_photos",
    "verify",
]
