"""An encoder that finds no memory: fewer items at once, and whoever finds none alone is to come again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clipserve.encoder import ExportedTextEncoder
from clipserve.encoder_spec import FloatArray
from clipserve.pipeline import Pipeline
from tests.clipserve.answers import LONG, TEXTS, assert_close, body_of, json_row, vectors

# What PyTorch says on a GPU inside a traced graph (pytorch/pytorch issue 148642), outside one, and of cuBLAS.
ON_A_GPU = [
    RuntimeError(
        "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript:\n"
        "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.7 GiB"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@torch.jit.script
def takes_a_petabyte(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    return torch.zeros([1 << 50, input_ids.shape[0]])


def holds(most: int, module: Callable[..., Tensor], error: Exception) -> Callable[..., Tensor]:
    """A stand-in for a device with room for so many tokens at once, since no GPU is here to be filled."""

    def run(*inputs: Tensor) -> Tensor:
        if inputs[0].numel() > most:
            raise error
        return module(*inputs)

    return run


def test_what_pytorch_really_says_on_a_cpu(
    text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoder, "_module", takes_a_petabyte)
    ids = text_encoder.tokenizer.pad([[1, 2, 3]])
    with pytest.raises(MemoryError, match=r"no memory on cpu for inputs of \[\[1, 3\], \[1, 3\]\]; lower"):
        text_encoder.embed(*ids)


@pytest.mark.parametrize("error", ON_A_GPU, ids=["in a graph", "outside", "cuBLAS"])
def test_fewer_at_once_find_room(
    error: Exception,
    texts: Pipeline,
    text_encoder: ExportedTextEncoder,
    text_vectors: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mock raises what a full GPU does."""
    longest = max(len(text_encoder.tokenizer.tokenize(text).ids) for text in TEXTS)
    monkeypatch.setattr(text_encoder, "_module", holds(longest, text_encoder._module, error))
    reply = texts.handle([json_row({"input": list(TEXTS)})])[0]
    assert_close(vectors(reply), text_vectors)


@pytest.mark.parametrize("error", ON_A_GPU, ids=["in a graph", "outside", "cuBLAS"])
def test_who_finds_none_alone_is_told_to_come_again(
    error: Exception,
    texts: Pipeline,
    text_encoder: ExportedTextEncoder,
    text_vectors: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mock raises what a full GPU does; neither other requests nor other items of the same one suffer."""
    module: Any = text_encoder._module
    monkeypatch.setattr(text_encoder, "_module", holds(60, module, error))
    rows = [{"input": TEXTS[0]}, {"input": LONG}, {"input": [LONG, TEXTS[1]]}]
    replies = texts.handle([json_row(row) for row in rows])
    assert [reply.status for reply in replies] == [200, 503, 200]
    assert_close(vectors(replies[0]), text_vectors[:1])
    assert body_of(replies[1])["error"]["code"] == "overloaded"
    assert "no memory" in body_of(replies[1])["error"]["message"]
    refused, embedded = body_of(replies[2])["data"]
    assert refused["error"]["code"] == "overloaded"
    assert_close([embedded["embedding"]], text_vectors[1:2])
    monkeypatch.setattr(text_encoder, "_module", module)
    assert texts.handle([json_row({"input": LONG})])[0].status == 200


def test_any_other_failure_is_still_the_items_own(
    texts: Pipeline, text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        text_encoder, "_module", holds(60, text_encoder._module, RuntimeError("shape mismatch"))
    )
    reply = texts.handle([json_row({"input": LONG})])[0]
    assert (reply.status, body_of(reply)["error"]["code"]) == (422, "not_embeddable")
