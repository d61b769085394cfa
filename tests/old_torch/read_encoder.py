"""Opens exported encoders with whatever torch runs this script, and compares their golden embeddings.

    python read_encoder.py ENCODER.pt INPUTS.pt [ENCODER.pt INPUTS.pt …]

It needs torch and numpy, nothing of clipserve's. INPUTS.pt is the list of tensors that the encoder takes for
its golden input, as `tests/golden.py` writes it. Two lines for each encoder, the input alone and in a batch;
exit status 0 where all keep to the bound of their certificates, 1 where one does not or cannot be opened.
"""

import base64
import json
import sys

import numpy as np
import torch

BATCH = 3


def difference(found, expected):
    """Max-abs and smallest cosine of float32 `[N, D]` from `[D]`, in units of the latter's length."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    length = np.linalg.norm(b)
    cosines = a @ b / (np.linalg.norm(a, axis=1) * length)
    return float(np.abs((a - b) / length).max()), float(cosines.min())


def read(encoder_path, inputs_path):
    """Whether the encoder keeps to its certificate's bound, alone and in a batch; prints the numbers."""
    extra_files = {"spec.json": ""}
    encoder = torch.jit.load(encoder_path, map_location="cpu", _extra_files=extra_files)
    spec = json.loads(extra_files["spec.json"])
    certificate = spec["certificate"]
    expected = np.frombuffer(base64.b64decode(certificate["golden"]["embedding"]), dtype="<f4")
    inputs = torch.load(inputs_path, weights_only=True)
    within = True
    for rows in (1, BATCH):
        with torch.inference_mode():
            found = encoder(*(tensor.repeat_interleave(rows, 0) for tensor in inputs)).numpy()
        assert found.dtype == np.float32, found.dtype
        assert found.shape == (rows, spec["embedding_dim"]), found.shape
        max_abs, cosine = difference(found, expected)
        bound = certificate["bound"]
        # NaN compares false with everything, and must not pass.
        holds = (bound["max_abs_diff"] is None or max_abs <= bound["max_abs_diff"]) and (
            bound["min_cosine"] is None or cosine >= bound["min_cosine"]
        )
        within = within and holds and np.isfinite([max_abs, cosine]).all()
        print(
            f"torch {torch.__version__}: {spec['modality']} {spec['precision']} batch {rows} "
            f"max-abs {max_abs:.3g} cosine {cosine:.8f}{'' if holds else ' BEYOND THE BOUND'}"
        )
    return within


def main(arguments):
    """Reads each pair of arguments."""
    failed = False
    for encoder_path, inputs_path in zip(arguments[::2], arguments[1::2], strict=True):
        try:
            failed = not read(encoder_path, inputs_path) or failed
        except RuntimeError as error:
            print(f"torch {torch.__version__}: {encoder_path}: {error}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
