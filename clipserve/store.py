"""What lies in a model store, or in an unpacked archive."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from clipserve.encoder_spec import SUFFIXES, EncoderSpec, Format, read_spec
from clipserve.errors import SpecError

# What workers run; ONNX files are for ONNX Runtime.
SERVED: tuple[Format, ...] = ("torchscript", "aoti")


@dataclass(frozen=True)
class Store:
    """The encoders in a folder, by their own specs.

    Attributes:
        folder: where they lie.
        encoders: file and spec of each, sorted by name.
    """

    folder: Path
    encoders: dict[Path, EncoderSpec]

    @classmethod
    def read(cls, folder: Path, formats: Iterable[Format] = SERVED) -> Store:
        """Reads the specs inside the encoder files of these formats.

        Raises:
            SpecError: a file is damaged or of another version.
        """
        files = [path for name in formats for path in folder.glob(f"*{SUFFIXES[name]}")]
        return cls(folder, {path: read_spec(path) for path in sorted(files)})

    @property
    def models(self) -> list[str]:
        """Ids of the models, sorted."""
        return sorted({spec.model_id for spec in self.encoders.values()})

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

    def where(self, holds: Callable[[EncoderSpec], bool]) -> Store:
        """The encoders of which something holds."""
        return Store(self.folder, {path: spec for path, spec in self.encoders.items() if holds(spec)})
