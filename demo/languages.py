"""The language self-test: is a served checkpoint as good in every language? `make languages`.

Against a running server, in each of the 40 languages: the running example (three pictures against three
sentences), and retrieval (a caption must find its picture among 200 freshly drawn scenes). Prints a table,
names the weak languages, and writes a heat map. It asks over HTTP only, so that it judges any served pair.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from random import Random

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from clipserve.client import Client
from clipserve.command import run_command
from clipserve.encoder_spec import FloatArray
from clipserve.errors import ClipServeError
from clipserve.similarity import cosine_similarity
from demo.captions import VOCABULARY_DIR, Vocabulary, load_vocabularies
from demo.scenes import draw
from demo.world import COUNTS, SETTINGS, THINGS, Scene, all_scenes
from serving.server import project_server

PICTURES = Path(__file__).parent / "pictures"
EXAMPLE_PICTURES = ("two-dogs-in-the-snow.jpg", "a-cat-on-a-table.jpg", "london-at-night.jpg")

POOL_SIZE = 200
PICTURE_SIZE = (320, 240)  # pixels

# Of even lightness from worst to best, so that it is read without telling red from green.
HEAT_MAP_COLOURS = "cividis"
# Training draws from seeds below this one; those above are fresh.
FIRST_FRESH_SEED = 1 << 48


@dataclass(frozen=True)
class Bounds:
    """What a language must reach not to be called weak, and all of them together.

    Attributes:
        probability: of each example picture's own sentence, among the three.
        recall: R@1 of one language.
        mean_recall: R@1, mean of the languages.
        mean_held_out_recall: R@1 of the held-out combinations alone, mean of the languages.
    """

    probability: float = 0.9
    recall: float = 0.8
    mean_recall: float = 0.9
    mean_held_out_recall: float = 0.6


@dataclass(frozen=True)
class LanguageResult:
    """One language's measurements.

    Attributes:
        probabilities: of each example picture's own sentence among the three.
        ranks: of each pool scene's own picture for its caption, 0 is first; `[POOL_SIZE]`.
        cosine_to_english: mean over the captions.
        unknown_share: of all tokens of its captions.
        misses: `caption -> name of the scene found instead`, for each caption that did not find its own.
    """

    name: str
    probabilities: tuple[float, ...]
    ranks: np.ndarray[tuple[int], np.dtype[np.int64]]
    cosine_to_english: float
    unknown_share: float
    misses: list[str]

    def recall(self, at: int, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]] | None = None) -> float:
        """Share of captions whose picture is among the first `at`; of `chosen` scenes only, if given."""
        ranks = self.ranks if chosen is None else self.ranks[chosen]
        return float((ranks < at).mean())


def pool(seed: int) -> list[Scene]:
    """`POOL_SIZE` different scenes: all held-out combinations, and others at random."""
    held_out = [scene for scene in all_scenes() if scene.held_out]
    others = [scene for scene in all_scenes() if not scene.held_out]
    return held_out + Random(seed).sample(others, POOL_SIZE - len(held_out))


def drawn(scenes: Sequence[Scene], seed: int) -> list[bytes]:
    """JPEG files of scenes as training has never drawn them."""
    return [_jpeg(draw(scene, FIRST_FRESH_SEED + seed + i, PICTURE_SIZE)) for i, scene in enumerate(scenes)]


def wordings(vocabulary: Vocabulary, scenes: Sequence[Scene], seed: int) -> list[str]:
    """A caption of each scene, in one of its wordings."""
    rng = Random(f"{seed} {vocabulary.code}")
    return [rng.choice(vocabulary.captions(scene)) for scene in scenes]


def measure(
    client: Client, vocabularies: dict[str, Vocabulary], scenes: Sequence[Scene], seed: int
) -> dict[str, LanguageResult]:
    """Measures every language against the served pair.

    Args:
        client: of the server.
        vocabularies: by code, English among them.
        scenes: what is drawn and captioned.
        seed: of the drawing and of the choice of wordings.

    Raises:
        ClipServeError: the server refuses or cannot be reached.
    """
    images = client.embed_images(drawn(scenes, seed))
    english = client.embed_texts([vocabularies["en"].captions(scene)[0] for scene in scenes])
    return {
        code: _measure_language(client, vocabulary, scenes, images, english, seed)
        for code, vocabulary in tqdm(vocabularies.items(), unit=" languages", leave=False)
    }


def _measure_language(
    client: Client,
    vocabulary: Vocabulary,
    scenes: Sequence[Scene],
    images: FloatArray,
    english: FloatArray,
    seed: int,
) -> LanguageResult:
    # One of the three, whatever the pair was trained with: a sigmoid's do not sum to 1.
    pictures = [PICTURES / name for name in EXAMPLE_PICTURES]
    answer = client.similarity(pictures, vocabulary.example, score="softmax")
    captions = wordings(vocabulary, scenes, seed)
    texts, usage = client.embed_texts_with_usage(captions)
    cosines = cosine_similarity(texts, images)
    found = ranks(cosines, np.arange(len(cosines)))
    first = np.argmax(cosines, axis=1)
    return LanguageResult(
        name=vocabulary.name,
        probabilities=tuple(np.diag(answer.probabilities).tolist()),
        ranks=found,
        cosine_to_english=float(np.diag(cosine_similarity(texts, english)).mean()),
        unknown_share=usage.unknown_tokens / usage.prompt_tokens,
        misses=[f"{captions[i]} -> {scenes[int(first[i])].name}" for i in np.flatnonzero(found).tolist()],
    )


def ranks(
    cosines: npt.NDArray[np.float64], own: npt.NDArray[np.int64]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where each row's own column stands, the most alike first, from 0; of equal ones the first counts.

    Args:
        cosines: `[captions, pictures]`, or the other way round.
        own: column of each row, `[rows]`.
    """
    order = np.argsort(-cosines, axis=1, kind="stable")
    found: np.ndarray[tuple[int], np.dtype[np.int64]]
    found = np.argmax(order == own[:, None], axis=1)
    return found


def weak_languages(results: dict[str, LanguageResult], bounds: Bounds) -> list[str]:
    """In words, each language below its bounds; empty when there is none."""
    weak = []
    for result in results.values():
        if result.recall(1) < bounds.recall:
            weak.append(f"{result.name}: R@1 {result.recall(1):.1%}, should be >= {bounds.recall:.0%}")
        if min(result.probabilities) < bounds.probability:
            weak.append(
                f"{result.name}: an example sentence has probability {min(result.probabilities):.3f}, "
                f"should be >= {bounds.probability:g}"
            )
    return weak


def failed_means(results: dict[str, LanguageResult], scenes: Sequence[Scene], bounds: Bounds) -> list[str]:
    """In words, each mean over the languages below its bound."""
    failed = []
    of_all = mean(summarise(results, scenes))
    if of_all.recall_at_1 < bounds.mean_recall:
        failed.append(f"mean R@1 {of_all.recall_at_1:.1%}, should be >= {bounds.mean_recall:.0%}")
    if of_all.held_out_recall_at_1 < bounds.mean_held_out_recall:
        failed.append(
            f"mean held-out R@1 {of_all.held_out_recall_at_1:.1%}, "
            f"should be >= {bounds.mean_held_out_recall:.0%}"
        )
    return failed


def held_out_mask(scenes: Sequence[Scene]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which scenes are combinations that training never saw."""
    return np.array([scene.held_out for scene in scenes])


@dataclass(frozen=True)
class Summary:
    """One language's figures, or the means of all; shares from 0 to 1.

    Attributes:
        recall_at_1, recall_at_5: of all scenes.
        held_out_recall_at_1: of the combinations that training never saw.
        example: the lowest probability that an example picture gives to its own sentence.
        cosine_to_english: mean over the captions.
        unknown_share: of all tokens of its captions.
    """

    name: str
    recall_at_1: float
    recall_at_5: float
    held_out_recall_at_1: float
    example: float
    cosine_to_english: float
    unknown_share: float


def summarise(results: dict[str, LanguageResult], scenes: Sequence[Scene]) -> list[Summary]:
    """The figures of each language."""
    unseen = held_out_mask(scenes)
    return [
        Summary(
            result.name,
            result.recall(1),
            result.recall(5),
            result.recall(1, unseen),
            min(result.probabilities),
            result.cosine_to_english,
            result.unknown_share,
        )
        for result in results.values()
    ]


def mean(summaries: Sequence[Summary]) -> Summary:
    """The means over the languages."""
    numbers = np.array([astuple(summary)[1:] for summary in summaries]).mean(0)
    return Summary("mean", *numbers.tolist())


def table(summaries: Sequence[Summary]) -> list[str]:
    """The lines of a Markdown table, with a last line of means."""
    lines = [
        "| language | R@1 | R@5 | R@1 held out | example | cosine to English | unknown tokens |",
        "|:---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in (*summaries, mean(summaries)):
        recalls = f"{row.recall_at_1:6.1%} | {row.recall_at_5:6.1%} | {row.held_out_recall_at_1:6.1%}"
        lines.append(
            f"| {row.name:<21} | {recalls} | {row.example:.4f} | {row.cosine_to_english:.3f} | "
            f"{row.unknown_share:5.1%} |"
        )
    return lines


def write_heat_map(results: dict[str, LanguageResult], scenes: Sequence[Scene], path: Path) -> None:
    """Draws R@1 by language and by thing, count and setting."""
    groups: list[tuple[str, list[bool]]] = [(t, [s.thing == t for s in scenes]) for t in THINGS]
    groups += [(str(c), [s.count == c for s in scenes]) for c in COUNTS]
    groups += [(w.replace("_", " "), [s.setting == w for s in scenes]) for w in SETTINGS]
    values = [[r.recall(1, np.array(mask)) for _, mask in groups] for r in results.values()]
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 12), layout="constrained")
    drawn = axes.imshow(values, vmin=0, vmax=1, cmap=HEAT_MAP_COLOURS, aspect="auto")
    axes.set_xticks(range(len(groups)), [name for name, _ in groups], rotation=60, ha="right")
    axes.set_yticks(range(len(results)), [result.name for result in results.values()])
    for border in (len(THINGS), len(THINGS) + len(COUNTS)):
        axes.axvline(border - 0.5, color="white", linewidth=3)
    axes.set_title(f"A caption finds its picture among {len(scenes)}: share by thing, count and setting")
    figure.colorbar(drawn, ax=axes, shrink=0.4, label="R@1")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _jpeg(image: Image.Image) -> bytes:
    """A drawn scene as a file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 1 also where languages are weak, see `run_command`."""
    defaults = Bounds()
    parser = argparse.ArgumentParser(prog="python -m demo.languages", description=__doc__)
    parser.add_argument("--vocabulary", type=Path, default=VOCABULARY_DIR, help="folder of <code>.json")
    parser.add_argument("--heat-map", type=Path, default=Path("languages.png"))
    parser.add_argument("--seed", type=int, default=0, help="of the fresh scenes")
    parser.add_argument(
        "--min-recall", type=float, default=defaults.recall, help="R@1 that a language needs; 0 to 1"
    )
    parser.add_argument(
        "--min-probability", type=float, default=defaults.probability, help="of an example sentence; 0 to 1"
    )
    arguments = parser.parse_args(argv)

    def work() -> bool:
        bounds = Bounds(arguments.min_probability, arguments.min_recall)
        scenes = pool(arguments.seed)
        print(f"drawing and embedding {len(scenes)} scenes, then their captions in each language", flush=True)
        try:
            vocabularies = load_vocabularies(arguments.vocabulary)
        except ValueError as error:
            raise ClipServeError(str(error)) from error
        with project_server().client() as client:
            results = measure(client, vocabularies, scenes, arguments.seed)
        print("\n".join(table(summarise(results, scenes))))
        write_heat_map(results, scenes, arguments.heat_map)
        print(f"\nheat map: {arguments.heat_map}")
        problems = weak_languages(results, bounds) + failed_means(results, scenes, bounds)
        if not problems:
            print("none of them is weak")
        for problem in problems:
            print(f"languages: weak: {problem}", file=sys.stderr)
        return not problems

    return run_command("languages", work)


if __name__ == "__main__":
    sys.exit(main())
