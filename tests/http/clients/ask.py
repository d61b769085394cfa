"""Runs in .venv-clients: `ask.py CLIENT` asks for the embeddings of items, and prints them as JSON.

On standard input: `url`, `key`, `model`, and `items`, which are texts and data: URIs of pictures.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# litellm fetches a table of prices unless it is told that it has one.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

Vectors = list[list[float]]


def with_openai(url: str, key: str, model: str, items: list[str]) -> Vectors:
    import openai

    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        return [entry.embedding for entry in client.embeddings.create(model=model, input=items).data]


def with_openai_parts(url: str, key: str, model: str, items: list[str]) -> Vectors:
    """Items that OpenAI's types do not know of."""
    import openai

    given: Any = [
        {"type": "image_url", "image_url": {"url": item}} if item.startswith("data:") else {"text": item}
        for item in items
    ]
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        return [entry.embedding for entry in client.embeddings.create(model=model, input=given).data]


def with_litellm(url: str, key: str, model: str, items: list[str]) -> Vectors:
    import litellm

    answer = litellm.embedding(f"openai/{model}", items, api_base=url, api_key=key, encoding_format="float")
    return [entry["embedding"] for entry in answer.data]


def with_langchain(url: str, key: str, model: str, items: list[str]) -> Vectors:
    from langchain_openai import OpenAIEmbeddings

    # Tokens of OpenAI's own models are what it sends otherwise.
    embeddings = OpenAIEmbeddings(
        model=model, base_url=url, api_key=key, check_embedding_ctx_length=False, chunk_size=128
    )
    return embeddings.embed_documents(items)


def with_llama_index(url: str, key: str, model: str, items: list[str]) -> Vectors:
    from llama_index.embeddings.openai import OpenAIEmbedding

    embedding = OpenAIEmbedding(model_name=model, api_base=url, api_key=key, max_retries=0)
    return embedding.get_text_embedding_batch(items)


def with_infinity(url: str, key: str, model: str, items: list[str]) -> Vectors:
    """It embeds one kind in a request, which it names."""
    from infinity_client import AuthenticatedClient
    from infinity_client.api.default import embeddings
    from infinity_client.models import (
        OpenAIEmbeddingInputImage,
        OpenAIEmbeddingInputImageModality,
        OpenAIEmbeddingInputText,
    )

    client = AuthenticatedClient(base_url=url, token=key, raise_on_unexpected_status=True, timeout=60)
    found: dict[str, list[float]] = {}
    with client:
        for is_image in (False, True):
            chosen = [item for item in items if item.startswith("data:") == is_image]
            body = (
                OpenAIEmbeddingInputImage(
                    chosen, model=model, modality=OpenAIEmbeddingInputImageModality.IMAGE
                )
                if is_image
                else OpenAIEmbeddingInputText(chosen, model=model)
            )
            answer = embeddings.sync(client=client, body=body)
            found |= dict(zip(chosen, (entry.embedding for entry in answer.data), strict=True))
    return [found[item] for item in items]


CLIENTS = {
    "openai": with_openai,
    "openai, parts": with_openai_parts,
    "litellm": with_litellm,
    "langchain": with_langchain,
    "llama-index": with_llama_index,
    "infinity": with_infinity,
}

if __name__ == "__main__":
    print(json.dumps(CLIENTS[sys.argv[1]](**json.load(sys.stdin))))
