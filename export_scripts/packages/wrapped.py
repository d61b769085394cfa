"""Exports encoders for another program, and finds and checks what was exported: see `contracts`."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipserve.archive_files import file_sha256
from clipserve.certificate import ParityCertificate
from clipserve.encoder_spec import Device, Modality, Precision
from clipserve.errors import ExportError, SpecError
from clipserve.folders import staged
from clipserve.store import EncoderFile, PyTorchReader, check_format
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.packages.contracts import CONTRACTS
from export_scripts.packages.conventions import Contract, Convention, Exported, Wrapped, as_fed
from export_scripts.packages.folders import publish_files
from export_scripts.parity.proof import recheck
from export_scripts.parity.subjects import SUBJECTS, Subject
from export_scripts.publish import Export, Made, check_precision

# Other programs bring their own kernels: what they gain by a half precision is theirs to try.
PRECISION: Precision = "fp32"


def check_contract(contract: Contract, device: Device, precision: Precision | None) -> None:
    """Checks that this machine can export for a program.

    Raises:
        ExportError: it cannot.
    """
    check_precision(device, precision, contract.name, [PRECISION] if device in contract.devices else [])


def export_wrapped(
    contract: Contract,
    pair: CheckpointPair,
    device: Device,
    precision: Precision | None,
    store: Path,
    *,
    normalized: bool = True,
    tell: Callable[[Modality, Made | None], None] = lambda modality, made: None,
) -> list[Path]:
    """Exports a pair's encoders for a program into `store/NAME/`: all that it has a use for, or none.

    Args:
        tell: as `export_encoders` has it.

    Returns:
        What was published.

    Raises:
        ExportError: this cannot be exported for that program, or not here.
        ParityError: beyond the bound; nothing is published.
    """
    check_contract(contract, device, precision)
    ways = [_way(contract, pair, modality) for modality in contract.conventions]
    for _, convention in ways:
        if convention.left_to_caller is not None:
            print(f"export: warning: {convention.left_to_caller}", file=sys.stderr, flush=True)
    folder = store / contract.name
    with staged(folder) as work:
        export = Export(pair, contract.name, device, normalized, work)
        laid_out = work / "laid-out"
        laid_out.mkdir()
        entries = []
        for subject, convention in ways:
            tell(subject.modality, None)
            made = export.make(subject, Wrapped(convention), PRECISION)
            entries += contract.lay_out(Exported(made.path, made.spec, pair), laid_out)
            tell(subject.modality, made)
        publish_files(entries, folder)
    return [folder / entry.name for entry in entries]


@dataclass(frozen=True)
class WrappedFile:
    """An encoder in a store that was exported for another program.

    Attributes:
        name: of what holds it, relative to the store.
        file: the encoder itself; out of a zip file, a copy.
    """

    contract: Contract
    name: str
    file: EncoderFile

    def recheck(self, pair: CheckpointPair, store: Path, work: Path) -> ParityCertificate:
        """Checks what lies beside the encoder, and recomputes the certificate.

        Args:
            work: where to put it all together once more.

        Raises:
            SpecError: something is missing, or not what the encoder's export has written.
            ExportError: the encoder was made from another checkpoint than the pair's.
        """
        path, spec = self.file.path, self.file.spec
        subject, convention = _way(self.contract, pair, spec.modality)
        certificate = recheck(subject, Wrapped(convention), path, spec)
        with staged(work) as again:
            for entry in self.contract.lay_out(Exported(path, spec, pair), again):
                for wanted in entry.rglob("*") if entry.is_dir() else [entry]:
                    published = store / self.contract.name / wanted.relative_to(again)
                    if not published.is_file() or file_sha256(published) != file_sha256(wanted):
                        raise SpecError(
                            f"{published}: missing, or not what was exported with the encoder; run "
                            f"'make export FORMAT={self.contract.name}' again"
                        )
        return certificate


def wrapped_files(store: Path, work: Path) -> Iterator[WrappedFile]:
    """The encoders in a store that were exported for other programs.

    Args:
        work: where to put those that lie in zip files.

    Raises:
        SpecError: one is damaged, or of another form than its folder's.
    """
    for contract in CONTRACTS.values():
        for pattern in contract.encoders:
            for found in sorted((store / contract.name).glob(pattern)):
                # A folder each: of copies the encoders have one name.
                path = (
                    _taken_out(found, work / contract.name / found.stem) if found.suffix == ".zip" else found
                )
                file = EncoderFile.read(path, PyTorchReader())
                check_format(found, file.spec, [contract.name])
                yield WrappedFile(contract, found.relative_to(store).as_posix(), file)


def _way(contract: Contract, pair: CheckpointPair, modality: Modality) -> tuple[Subject, Convention]:
    subject = SUBJECTS[modality](pair)
    if subject.text is not None and subject.text.padding != "longest":
        raise ExportError(
            f"{contract.program} pads texts to the longest of a batch, {subject.checkpoint.name} wants each "
            f"at {subject.text.context_length} tokens; serve it with 'make export archive serve'"
        )
    convention = contract.conventions[modality](subject)
    return as_fed(subject, convention, pair, contract.program), convention


def _taken_out(archive: Path, folder: Path) -> Path:
    """A copy of the encoder in a zip file.

    Raises:
        SpecError: it holds none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as source:
            (name,) = [name for name in source.namelist() if name.endswith(".pt")]
            target = folder / Path(name).name
            with source.open(name) as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SpecError(f"{archive}: holds no readable encoder ({error}); run 'make export' again") from error
    return target
