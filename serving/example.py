"""The original SDK's running example over HTTP: vectors, similarities and confidences of one picture."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray, ScoreKind
from clipserve.similarity import cosine_similarity
from serving.local import ROOT

PICTURES = ROOT / "demo" / "pictures"
EXAMPLE_IMAGE = PICTURES / "two-dogs-in-the-snow.jpg"
EXAMPLE_TEXTS = ("Two dogs in the snow", "A cat on a table", "A picture of London at night")

SAID: dict[ScoreKind, str] = {
    "softmax": "softmax: which of these fits best",
    "sigmoid": 'sigmoid: whether each fits, by itself; which fits best says "score": "softmax"',
}

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
    print(f"label probabilities ({SAID[answer.score]}):")
    for text, probability in zip(texts, answer.probabilities[0], strict=True):
        print(f"  {probability:.7g}  {text}")


def curl_lines(url: str, token: str) -> str:
    """One call of each endpoint, to paste into a shell."""
    predictions = f"{url}/predictions"
    # A proxy of the environment's is not to see the token, nor would it find this machine's loopback.
    auth = f"-H 'Authorization: Bearer {token}' --noproxy '*'"
    image = shlex.quote(str(EXAMPLE_IMAGE.relative_to(ROOT)))
    texts = '{"input": ["雪の中の二匹の犬", "كلبان في الثلج"]}'
    labels = '["Two dogs in the snow", "A cat on a table", "London at night"]'
    return f"""# image -> vector
curl -s {auth} -H 'Content-Type: image/jpeg' --data-binary @{image} {predictions}/clip_image

# texts -> vectors
curl -s {auth} -H 'Content-Type: application/json' -d '{texts}' {predictions}/clip_text

# one picture against three labels
curl -s {auth} -F image=@{image} -F 'texts={labels}' {predictions}/clip_similarity"""


def _shown(embedding: FloatArray) -> str:
    numbers = [f"{x:.4f}" for x in np.concatenate([embedding[:SHOWN], embedding[-SHOWN:]])]
    return f"[{', '.join(numbers[:SHOWN])}, …, {', '.join(numbers[SHOWN:])}]"
