"""What there is to say of a program that loads encoders: how it calls them, what it wants beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipserve.encoder_spec import Device, EncoderSpec, FloatArray, Modality, Precision
from clipserve.errors import ExportError
from clipserve.loading import Module, load_torchscript
from clipserve.operators import operators_of
from clipserve.tokens import Tokenizer
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.encoders.spelling import Spelled, Spelling
from export_scripts.formats.base import DTYPES, Inputs
from export_scripts.formats.torchscript import TorchScript, save, trace
from export_scripts.parity.inputs import SENTENCES
from export_scripts.parity.subjects import Comparison, Run, Subject


@dataclass(frozen=True)
class Convention:
    """How a program calls one encoder.

    Attributes:
        wrap: what is traced, of the plain encoder.
        arguments: what the program calls it with, of what encoders take here: uint8 pixels, or ids and mask.
        result: the embeddings, float32 `[N, D]`, in what the program gets back.
        tokens: the ids that the program makes of a text, special ones included; None for pictures.
        spelling: functions that its PyTorch, or its list of operators, lacks.
        operators: the only ones that it admits; None admits all that its PyTorch has.
        left_to_caller: what whoever asks the program has to do, in one sentence.
    """

    wrap: Callable[[nn.Module], nn.Module]
    arguments: Callable[..., tuple[Any, ...]]
    result: Callable[[Any], Tensor]
    tokens: Callable[[str], list[int]] | None
    spelling: Spelling
    operators: frozenset[str] | None = None
    left_to_caller: str | None = None


@dataclass(frozen=True)
class Exported:
    """An encoder that has kept its bound, with what a program may want to know of it.

    Attributes:
        path: of the TorchScript file.
        pair: that it was made from.
    """

    path: Path
    spec: EncoderSpec
    pair: CheckpointPair


@dataclass(frozen=True)
class Contract:
    """A program that loads encoders.

    Attributes:
        name: as FORMAT, as `EncoderSpec.format`, and as the folder in the store.
        program: as people call it.
        torch: the PyTorch that it runs an encoder with.
        devices: that it runs one on.
        conventions: by modality, of those that it has a use for. Each says of a subject how it is called, or
            raises an ExportError where the program cannot call it.
        lay_out: writes what the program loads into a folder, and returns what is to be published of it.
        encoders: patterns of what holds an encoder among that: a `.pt`, or a zip file with one.
    """

    name: str
    program: str
    torch: str
    devices: tuple[Device, ...]
    conventions: Mapping[Modality, Callable[[Subject], Convention]]
    lay_out: Callable[[Exported, Path], list[Path]]
    encoders: tuple[str, ...]


class Wrapped(TorchScript):
    """TorchScript that a program calls by its own convention.

    `make` and `load` take what any format takes, so that it is proven like any: `load` gives a function of
    the inputs that encoders have here, which does what the program does.
    """

    def __init__(self, convention: Convention):
        self._convention = convention

    def make(self, encoder: nn.Module, precision: Precision, inputs: Inputs, path: Path) -> None:
        """See `EncoderFormat`.

        Raises:
            ExportError: the trace has an operator that the program does not admit.
        """
        convention, device = self._convention, inputs.example[0].device
        wrapped = convention.wrap(encoder.to(DTYPES[precision])).to(device)
        example = convention.arguments(*inputs.example)
        with Spelled(convention.spelling):
            traced = trace(wrapped, example)
        operators = operators_of(traced)
        if foreign := sorted(operators - (convention.operators or operators)):
            raise ExportError(f"the graph has operators that the program refuses: {', '.join(foreign)}")
        save(traced, device, path)

    def load(self, path: Path, device: torch.device) -> Module:
        """See `EncoderFormat`; as the program loads it, without packing weights."""
        module, convention = load_torchscript(path, device), self._convention
        return lambda *inputs: convention.result(module(*convention.arguments(*inputs)))


def as_fed(subject: Subject, convention: Convention, pair: CheckpointPair, program: str) -> Subject:
    """The subject, compared on the tokens that a program makes of sentences as well, over-long ones too."""
    if convention.tokens is None:
        return subject
    rows = [convention.tokens(text) for text in SENTENCES]
    tokenizer = Tokenizer(pair.text.tokenizer, pair.text.preprocessing)

    def embed(run: Run, rows: list[list[int]]) -> FloatArray:
        return run(*map(torch.from_numpy, tokenizer.pad(rows)))

    def original() -> FloatArray:
        return pair.text.reference_encode(SENTENCES)

    more: list[Comparison] = [
        (
            f"sentences as {program} makes tokens of them, one by one",
            lambda run: np.concatenate([embed(run, [row]) for row in rows]),
            original,
        ),
        (f"the same in one batch, padded to {max(map(len, rows))}", lambda run: embed(run, rows), original),
    ]
    return replace(subject, comparisons=[*subject.comparisons, *more])
