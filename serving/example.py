"""The original SDK's running example over HTTP: vectors, similarities and confidences of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray
from clipserve.protocol import cosine_similarity

SHOWN = 4  # components printed at either end of an embedding


def run_example(client: Client, image: Path, texts: Sequence[str]) -> None:
    """Prints what the original SDK printed: vectors, then similarities in percent, then probabilities.

    Raises:
        ClipServeError: the server refuses or cannot be reached.
        OSError: the picture cannot be read.
    """
    image_embedding = client.embed_images([image])[0]
    text_embeddings = client.embed_texts(texts)
    answer = client.similarity([image], texts)
    print(f"texts: {list(texts)}")
    print(f"image: {image.name}")
    print(f"vector dimension: {len(image_embedding)}")
    print(f"image embedding: {_shown(image_embedding)}")
    for index, (text, embedding) in enumerate(zip(texts, text_embeddings, strict=True)):
        # From the two embeddings; the similarity endpoint must say the same.
        cosine = cosine_similarity(image_embedding[None], embedding[None])[0, 0]
        print(f"text {index + 1}: {text}")
        print(f"text embedding: {_shown(embedding)}")
        print(f"similarity: {100 * cosine:.2f}%")
    print("label probabilities:")
    for text, probability in zip(texts, answer.probabilities[0], strict=True):
        print(f"  {probability:.7g}  {text}")


def _shown(embedding: FloatArray) -> str:
    numbers = [f"{x:.4f}" for x in np.concatenate([embedding[:SHOWN], embedding[-SHOWN:]])]
    return f"[{', '.join(numbers[:SHOWN])}, …, {', '.join(numbers[SHOWN:])}]"
