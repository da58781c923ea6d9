"""hdf5: one file of arrays, for h5py, MATLAB, Julia and R."""

from pathlib import Path

import h5py

from vitbackbone.store.formats.arrays import pieces, shapes
from vitbackbone.store.store import FeatureStore


def write(store: FeatureStore, folder: Path, progress: bool) -> None:
    """Write one file."""
    with h5py.File(folder / "features.h5", "w") as file:
        for name, (shape, dtype) in shapes(store).items():
            file.create_dataset(name, shape, h5py.string_dtype() if dtype is str else dtype)
        for piece in pieces(store, progress):
            file[piece.name][piece.start : piece.start + len(piece.values)] = piece.values
