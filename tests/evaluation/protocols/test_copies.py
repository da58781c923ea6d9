"""Copy detection against its formula written again."""

import numpy as np
import pytest
from PIL import Image

from tests.evaluation import dense_data
from tests.evaluation.protocols.small_runs import features, pixels, scores, trapezoids
from vitbackbone.evaluation import evaluate


def test_copies(backbone, tmp_path):
    root = dense_data.copydays(tmp_path / "copydays")
    others, learnt = (dense_data.photo_folder(tmp_path / name) for name in ("distractors", "whitening"))
    data = {"copydays": root, "copydays-distractors": others, "copydays-whitening": learnt}
    results = evaluate("copies", backbone, data, settings={"view.size": 32}, progress=False)

    def vector(path):
        found = features(backbone, pixels(Image.open(path).convert("RGB").resize((32, 32), 3)))[0]
        gem = found.patches[0].double().clamp(min=1e-6).pow(4).mean((1, 2)).pow(0.25)
        return np.concatenate([found.cls[0].double().numpy(), gem.numpy()])

    originals = sorted((root / "original").iterdir())
    database = np.stack([vector(p) for p in [*originals, *sorted(others.iterdir())]])
    white = np.stack([vector(p) for p in sorted(learnt.iterdir())])
    values, basis = np.linalg.eigh(white.T @ white / len(white))
    values = np.maximum(values, 1e-5 * values.max())
    turn = basis / np.sqrt(values)
    database = (database - white.mean(0)) @ turn
    aps, pairs, positives = [], [], 0
    for path in sorted((root / "strong").iterdir()):
        query = (vector(path) - white.mean(0)) @ turn
        similar = database @ query / np.linalg.norm(database, axis=1) / np.linalg.norm(query)
        own = [i for i, p in enumerate(originals) if p.name[:4] == path.name[:4]]
        aps.append(trapezoids(np.argsort(-similar)[:20].tolist(), own, []))
        pairs += [(similar[i], i in own) for i in np.argsort(-similar)[:20]]
        positives += len(own)
    seen, micro = 0, 0.0
    for place, (_, right) in enumerate(sorted(pairs, reverse=True), 1):
        seen += right
        micro += right * seen / place / positives
    assert scores(results, "micro-AP strong") == pytest.approx(100 * micro, abs=1e-3)
    assert scores(results, "mAP strong") == pytest.approx(100 * np.mean(aps), abs=1e-3)
    assert not results[0].notes
