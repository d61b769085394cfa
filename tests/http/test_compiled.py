"""A server whose archives hold packages compiled by AOTInductor, on a machine without a compiler."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipserve.client import Management
from clipserve.encoder_spec import description_path
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.packages.archive import build_archives
from serving.server import Server, private_server
from tests.conftest import ExportedAs
from tests.export_scripts.exports import unit
from tests.http.api import picture
from tests.http.conftest import READY_SECONDS

COMPILERS = re.compile(r"(.*-)?(g\+\+|gcc|c\+\+|cc|c99|cpp|clang.*|ld(\..*)?|as)(-\d+)?")

TEXTS = ["két kutya a hóban", "a", "三只猫在桌子上"]

# Two encoders are compiled, half a minute each.
pytestmark = [pytest.mark.full, pytest.mark.torchserve_only("it starts one of its own")]


def path_without_compilers(folder: Path) -> str:
    """A PATH of links to all programs of this one but compilers, assemblers and linkers."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            link = folder / program.name
            if not COMPILERS.fullmatch(program.name) and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


@pytest.fixture(scope="module")
def compiled(exported_as: ExportedAs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("compiled")
    store = work / "store"
    store.mkdir()
    for name in ("image", "multilingual"):
        path = exported_as(name, "aoti", "fp32")
        for file in (path, description_path(path)):
            shutil.copyfile(file, store / file.name)
    build_archives(store, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PATH", path_without_compilers(work / "bin"))
        patch.delenv("CXX", raising=False)
        assert shutil.which("g++") is None
        assert shutil.which("java") is not None or "JAVA_HOME" in os.environ
        with private_server(store, work / "server").started(READY_SECONDS) as server:
            yield server


def test_compiled_encoders_answer_as_their_originals(compiled: Server, pair: CheckpointPair) -> None:
    with compiled.client() as client:
        for endpoint in ("clip_image", "clip_text", "clip_similarity"):
            specs = Management(client).specs(endpoint)
            assert {spec.format for spec in specs} == {"aoti"}
            assert all("x86_64" in str(spec.cpu_capability) for spec in specs)
        expected = unit(pair.text.reference_encode(TEXTS))
        np.testing.assert_allclose(client.embed_texts(TEXTS), expected, atol=1e-5)
        for count in (1, 3):
            pictures = [picture(i) for i in range(count)]
            embeddings = client.embed_images(pictures)
            assert embeddings.shape == (count, 32)
            answer = client.similarity(pictures, TEXTS)
            np.testing.assert_allclose(answer.cosine_similarity, embeddings @ expected.T, atol=1e-5)
