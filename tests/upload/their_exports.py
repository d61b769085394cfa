"""Has eland and opensearch-py-ml export a checkpoint, and sentence-transformers embed texts with it.

    python their_exports.py CHECKPOINT TEXTS.json FOLDER

Writes into the folder: `eland/` and `opensearch-py-ml.zip`, as these write them, and `original.npy`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from eland.ml.pytorch.transformers import TransformerModel
from opensearch_py_ml.ml_models import SentenceTransformerModel
from sentence_transformers import SentenceTransformer


def main(checkpoint, texts, folder):
    """Writes all of it."""
    folder = Path(folder)
    (folder / "eland").mkdir()
    model = TransformerModel(model_id=checkpoint, task_type="text_embedding", es_version=(9, 2, 0))
    _, config, _ = model.save(str(folder / "eland"))
    (folder / "eland" / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")

    exporter = SentenceTransformerModel(model_id=checkpoint, folder_path=str(folder / "work"))
    written = exporter.save_as_pt(["két kutya a hóban"], model_id=checkpoint)
    Path(written).rename(folder / "opensearch-py-ml.zip")

    original = SentenceTransformer(checkpoint, device="cpu")
    sentences = json.loads(Path(texts).read_text(encoding="utf-8"))
    np.save(folder / "original.npy", np.concatenate([original.encode([text]) for text in sentences]))


if __name__ == "__main__":
    main(*sys.argv[1:])
