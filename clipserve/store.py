"""What lies in a model store, or in an unpacked archive, and which of its files fits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from clipserve.encoder_spec import (
    SUFFIXES,
    EncoderSpec,
    Format,
    Precision,
    artifact_sha256,
    description_path,
    parity_bound,
    read_extra_file,
    read_spec,
)
from clipserve.errors import SpecError
from clipserve.hardware import check_cpu, native_precisions
from clipserve.loading import LOADERS

FormatT = TypeVar("FormatT", bound=str)


class Reader(Protocol):
    """Reads encoder files of one format."""

    def extra_file(self, path: Path, name: str) -> bytes:
        """One of the texts that the file carries, by its name.

        Raises:
            SpecError: the file is not readable, or carries none of this name.
        """

    def sha256(self, path: Path) -> str:
        """See `EncoderSpec.artifact_sha256`; extra files do not count."""


class PyTorchReader:
    """Reads what workers run."""

    def extra_file(self, path: Path, name: str) -> bytes:
        """See `Reader`."""
        return read_extra_file(path, name)

    def sha256(self, path: Path) -> str:
        """See `Reader`."""
        return artifact_sha256(path)


SERVED: dict[Format, Reader] = {format: PyTorchReader() for format in LOADERS}


@dataclass(frozen=True)
class EncoderFile:
    """An encoder file, and the spec inside."""

    path: Path
    spec: EncoderSpec
    reader: Reader

    @classmethod
    def read(cls, path: Path, reader: Reader) -> EncoderFile:
        """Reads the spec.

        Raises:
            SpecError: the file is damaged or of another version.
        """
        return cls(path, read_spec(path, reader.extra_file), reader)

    def extra_file(self, name: str) -> bytes:
        """See `Reader.extra_file`."""
        return self.reader.extra_file(self.path, name)

    def check_unchanged(self) -> None:
        """Checks that code and weights are those of the spec; see `check_unchanged`."""
        check_unchanged(self.path, self.spec, self.reader.sha256(self.path))

    def check_published(self) -> None:
        """Checks that the file is as its export left it: description, code and weights, certificate.

        Raises:
            SpecError: it is not.
        """
        beside = description_path(self.path)
        if not beside.is_file() or EncoderSpec.from_json(beside.read_text("utf-8"), str(beside)) != self.spec:
            raise SpecError(
                f"{beside}: missing, or not the spec inside {self.path.name}; run 'make export' again"
            )
        self.check_unchanged()
        certificate = self.spec.certificate
        bound = parity_bound(self.spec.format, self.spec.device, self.spec.precision)
        if certificate.bound != bound or not certificate.holds:
            raise SpecError(f"{self.path}: its certificate is beyond the bound; run 'make export' again")

    def runs_here(self) -> bool:
        """Whether this CPU has what machine code in the file uses."""
        try:
            check_cpu(self.path, self.spec)
        except SpecError:
            return False
        return True


@dataclass(frozen=True)
class Store:
    """The encoders in a folder, by their own specs.

    Attributes:
        folder: where they lie.
        encoders: sorted by their paths.
    """

    folder: Path
    encoders: tuple[EncoderFile, ...]

    @classmethod
    def read(cls, folder: Path, readers: Mapping[Format, Reader] = SERVED) -> Store:
        """Reads the specs inside the encoder files.

        Args:
            readers: the formats to look for; files of others are passed over.

        Raises:
            SpecError: a file is damaged, of another version, or written for another program.
        """
        found = [(path, name) for name in readers for path in _files(folder, name)]
        encoders = []
        for path, name in sorted(found):
            encoders.append(EncoderFile.read(path, readers[name]))
            check_format(path, encoders[-1].spec, [name])
        return cls(folder, tuple(encoders))

    @property
    def models(self) -> list[str]:
        """Ids of the models, sorted."""
        return sorted({file.spec.model_id for file in self.encoders})

    @property
    def names(self) -> str:
        """Of the encoder files, for a sentence; empty where there is none."""
        return ", ".join(file.path.name for file in self.encoders)

    @property
    def onnx_names(self) -> str:
        """Of the files beside them that are for ONNX Runtime, likewise."""
        return ", ".join(sorted(path.name for path in _files(self.folder, "onnx")))

    def model(self, model_id: str | None, how: str = "MODEL={}") -> Store:
        """The encoders of one model.

        Args:
            model_id: which; None where there is one only. One that is not there leaves none.
            how: to say which, with `{}` for the name.

        Raises:
            SpecError: there are several, and it was not said which: none is taken silently.
        """
        if model_id is None and len(self.models) > 1:
            raise SpecError(
                f"{self.folder} holds {len(self.models)} models ({', '.join(self.models)}); say which: "
                f"{how.format(self.models[0])}"
            )
        return self.where(lambda spec: model_id in (None, spec.model_id))

    def named(self, names: Collection[str]) -> Store:
        """The encoders in files of these names."""
        return Store(self.folder, tuple(file for file in self.encoders if file.path.name in names))

    def where(self, holds: Callable[[EncoderSpec], bool]) -> Store:
        """The encoders of which something holds."""
        return Store(self.folder, tuple(file for file in self.encoders if holds(file.spec)))

    def best(self, modality: str, device: str, precisions: Sequence[Precision] | None = None) -> EncoderFile:
        """The encoder that a worker should run.

        What the hardware multiplies natively goes first, in the order of `native_precisions`; of one
        precision, a package compiled for this CPU, in the order of `SERVED`.

        Args:
            precisions: another order, for another machine than this one.

        Raises:
            SpecError: none for this modality and device, or for another CPU only.
        """
        fitting = self.where(lambda spec: (spec.modality, spec.device) == (modality, device)).encoders
        if not fitting:
            onnx = f" (and {self.onnx_names}, which are for ONNX Runtime and not served)"
            raise SpecError(
                f"no {modality} encoder for {device} here, only {self.names or 'no encoder at all'}"
                f"{onnx if self.onnx_names else ''}; run 'make export DEVICE={device}' and 'make archive', "
                "or set deviceType to the other device in the archive's YAML"
            )
        here = [file for file in fitting if file.runs_here()]
        if not here:
            check_cpu(fitting[0].path, fitting[0].spec)
        order = native_precisions(device) if precisions is None else precisions

        def rank(file: EncoderFile) -> tuple[int, int, Path]:
            return _place(file.spec.precision, order), _place(file.spec.format, list(SERVED)), file.path

        return min(here, key=rank)

    def pair(
        self, device: str, precisions: Sequence[Precision] | None = None
    ) -> tuple[EncoderFile, EncoderFile]:
        """The image and the text encoder that workers should run; see `best`.

        Raises:
            SpecError: one is missing, or they are not of one embedding space.
        """
        image, text = (self.best(modality, device, precisions) for modality in ("image", "text"))
        check_pair(image.spec, text.spec)
        return image, text

    def check_published(self) -> None:
        """Checks that each file is as its export left it, and that all are of one embedding space.

        Raises:
            SpecError: they are not.
        """
        for file in self.encoders:
            file.check_published()
        for file in self.encoders[1:]:
            check_pair(self.encoders[0].spec, file.spec)


def check_format(path: Path, spec: EncoderSpec, formats: Collection[FormatT]) -> FormatT:
    """Checks that an encoder is called as its loader does.

    Args:
        formats: of the encoders that the loader can call.

    Returns:
        Which of them it is.

    Raises:
        SpecError: it is not: it may give no vector, or another one.
    """
    for format in formats:
        if format == spec.format:
            return format
    raise SpecError(
        f"{path}: an encoder as {spec.format} takes it, here {' or '.join(formats)} is wanted; run "
        "'make export' with that FORMAT"
    )


def check_unchanged(path: Path, spec: EncoderSpec, found: str) -> None:
    """Checks an encoder file's hash.

    Args:
        found: `artifact_sha256` of what lies there.

    Raises:
        SpecError: it is not the spec's.
    """
    if found != spec.artifact_sha256:
        raise SpecError(
            f"{path}: changed since its export: SHA-256 {found[:12]}… of code and weights, the spec says "
            f"{spec.artifact_sha256[:12]}…; run 'make export' again"
        )


def check_pair(image: EncoderSpec, text: EncoderSpec) -> None:
    """Checks that two encoders share one embedding space.

    Raises:
        SpecError: they do not.
    """
    if (image.space_id, image.embedding_dim) != (text.space_id, text.embedding_dim):
        raise SpecError(
            f"{image.stem} (space {image.space_id}, {image.embedding_dim}-d) and {text.stem} "
            f"(space {text.space_id}, {text.embedding_dim}-d) are not of one embedding space; "
            "export both in one 'make export'"
        )


def _files(folder: Path, file_format: Format) -> list[Path]:
    return list(folder.glob(f"*{SUFFIXES[file_format]}"))


def _place(value: str, order: Sequence[str]) -> int:
    """The lower, the more it is preferred; what is not in the order comes last."""
    return order.index(value) if value in order else len(order)
