"""Calls an encoder as another program does, with whatever torch runs this script.

    python call_encoder.py PROGRAM FILE INPUTS.pt EMBEDDINGS.pt

It needs torch and numpy, nothing of clipserve's. FILE is what lies in the store for the program. INPUTS.pt is
a list of batches, each a list of tensors: pixels, or ids and mask as the program's tokenizer gives them.
EMBEDDINGS.pt becomes the list of what comes back, float32 `[N, D]` each, or the error in its place.
"""

import io
import sys
import zipfile

import torch


def load(path):
    """A `.pt`, or the only one in a zip file, as it is unpacked in memory."""
    if not path.endswith(".zip"):
        return torch.jit.load(path, map_location="cpu")
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".pt")]
        return torch.jit.load(io.BytesIO(archive.read(name)), map_location="cpu")


def aias(encoder, *tensors):
    """Normalised pixels; or texts in one dictionary."""
    if len(tensors) == 1:
        return encoder(*tensors)
    ids, mask = tensors
    return encoder({"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask})


def opensearch(encoder, ids, mask):
    """A dictionary in, a dictionary back."""
    return encoder({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]


def elasticsearch(encoder, ids, mask):
    """Four tensors, of which BERT's tokenizer makes the last two; two for XLM-R's."""
    if len(encoder.forward.schema.arguments) == 3:
        return encoder(ids, mask)
    return encoder(ids, mask, torch.zeros_like(ids), torch.arange(ids.shape[1]).repeat(len(ids), 1))


PROGRAMS = {"aias": aias, "opensearch": opensearch, "elasticsearch": elasticsearch}


def main(program, path, inputs, outputs):
    """Calls the encoder with each batch."""
    encoder = load(path)
    answers = []
    for tensors in torch.load(inputs, weights_only=True):
        try:
            with torch.inference_mode():
                answers.append(PROGRAMS[program](encoder, *tensors))
        except (RuntimeError, torch.jit.Error) as error:
            answers.append(str(error))
    torch.save(answers, outputs)
    print(torch.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])
