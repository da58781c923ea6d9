"""The feature store: images to features on disk, with nothing lost."""

from vitbackbone.store.formats import FORMATS, export
from vitbackbone.store.groups import copies, groups_by
from vitbackbone.store.photos import ReadPhoto, read_photos, source_files
from vitbackbone.store.prune import prune
from vitbackbone.store.run import extract
from vitbackbone.store.snapshots import history
from vitbackbone.store.sources.source import list_inputs
from vitbackbone.store.store import FeatureStore
from vitbackbone.store.verify import verify
from vitbackbone.store.workers.batch import embed_batch
from vitbackbone.store.workers.cluster import RayCluster
from vitbackbone.store.workers.processes import all_devices
from vitbackbone.store.workers.slices import Slice

__all__ = [
    "FORMATS",
    "FeatureStore",
    "RayCluster",
    "ReadPhoto",
    "Slice",
    "all_devices",
    "copies",
    "embed_batch",
    "export",
    "extract",
    "groups_by",
    "history",
    "list_inputs",
    "prune",
    "read_photos",
    "source_files",
    "verify",
]
