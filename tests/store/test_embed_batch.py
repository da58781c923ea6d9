"""`embed_batch`: the features of `extract`, for the engines of others."""

import io
import pickle

import numpy as np
import pytest
import torch

from tests.helpers import photo, tiny_vit
from vitbackbone import embed_batch, extract, load_backbone
from vitbackbone.images import ImageError


def files(count: int) -> list[bytes]:
    found = []
    for i in range(count):
        file = io.BytesIO()
        photo(40 + i, 50, i).save(file, "PNG")
        found.append(file.getvalue())
    return found


@pytest.mark.parametrize("kind", ["cls", "pooled", "patches"])
def test_a_batch_equals_the_backbone(kind: str) -> None:
    backbone = tiny_vit(num_registers=1)
    images = files(3)
    found = embed_batch(images, backbone, features=kind)
    with torch.inference_mode():
        expected = getattr(backbone(torch.stack([backbone.preprocess(image) for image in images])), kind)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32


def test_it_equals_extract(tmp_path) -> None:
    images = files(3)
    for i, data in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(data)
    store = extract(load_backbone("nano"), tmp_path, tmp_path / "out", progress=False)
    np.testing.assert_allclose(embed_batch(images), store.cls, atol=1e-5)
    arrays = [np.array(photo(40 + i, 50, i)) for i in range(3)]
    np.testing.assert_allclose(pickle.loads(pickle.dumps(embed_batch))(arrays), store.cls, atol=1e-5)  # noqa: S301


def test_a_bad_image_raises_or_is_nan(caplog) -> None:
    good = files(2)
    backbone = tiny_vit()
    with pytest.raises(ImageError, match="image 1 cannot be read"):
        embed_batch([good[0], b"?"], backbone)
    found = embed_batch([good[0], b"?", None, good[1]], backbone, errors="nan")
    np.testing.assert_allclose(found[[0, 3]], embed_batch(good, backbone), atol=1e-5)
    assert np.isnan(found[1:3]).all()
    assert [record.getMessage()[:22] for record in caplog.records] == ["image 1 cannot be read", "image 2 is None"]
    assert "image 0" not in caplog.text
    assert np.isnan(embed_batch([None], backbone, errors="nan")).all()
    assert embed_batch([], backbone).shape == (0, 16)


def test_what_a_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="no CLS token; ask for features='pooled'"):
        embed_batch(files(1), tiny_vit(cls=False, pool="mean"))
    with pytest.raises(ValueError, match="want 'cls', 'pooled' or 'patches'"):
        embed_batch(files(1), tiny_vit(), features="tokens")
    with pytest.raises(ValueError, match="want 'raise' or 'nan'"):
        embed_batch(files(1), tiny_vit(), errors="ignore")
