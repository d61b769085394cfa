from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from clipserve.encoder_spec import sha256
from clipserve.errors import SpecError
from clipserve.preprocessing import TextPreprocessing
from clipserve.tokens import Tokenizer, largest_token_id, length_groups
from demo.captions import LANGUAGES, load_vocabularies
from export_scripts.checkpoints.loading import load_text_checkpoint

KINDS = ["clip-bpe", "wordpiece-json", "wordpiece-vocab", "unigram"]


@dataclass(frozen=True)
class Case:
    """Our tokenizer of a checkpoint, and the checkpoint's own."""

    kind: str
    ours: Tokenizer
    definition: str
    preprocessing: TextPreprocessing
    original: Any

    def ids(self, text: str) -> list[int]:
        """What the checkpoint's own tokenizer gives, truncated by itself."""
        ids: list[int] = self.original(text, truncation=True, max_length=self.preprocessing.context_length)[
            "input_ids"
        ]
        return ids

    def all_ids(self, text: str) -> list[int]:
        ids: list[int] = self.original(text, truncation=False, verbose=False)["input_ids"]
        return ids


@pytest.fixture(scope="module")
def cases(
    clip_folder: Path, multilingual_folder: Path, m_clip_bert_folder: Path, m_clip_xlm_roberta_folder: Path
) -> dict[str, Case]:
    folders = {
        "clip-bpe": (clip_folder, clip_folder / "0_CLIPModel"),
        "wordpiece-json": (multilingual_folder, multilingual_folder),
        "wordpiece-vocab": (m_clip_bert_folder, m_clip_bert_folder),
        "unigram": (m_clip_xlm_roberta_folder, m_clip_xlm_roberta_folder),
    }
    made = {}
    for kind, (folder, tokenizer_folder) in folders.items():
        checkpoint = load_text_checkpoint(folder, kind)
        made[kind] = Case(
            kind,
            Tokenizer(checkpoint.tokenizer, checkpoint.preprocessing),
            checkpoint.tokenizer,
            checkpoint.preprocessing,
            # Read anew: the export takes settings off the one that it has loaded.
            transformers.AutoTokenizer.from_pretrained(tokenizer_folder),
        )
    return made


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


AWKWARD = {
    "empty": "",
    "blank": "   ",
    "blank of other kinds": "\u00a0\u2003\t\r\n\u200b",
    "leading and trailing blanks": "  two dogs  ",
    "several lines": "two\ndogs\r\nin the\tsnow",
    "combining marks": "e\u0301te\u0301 a\u030a o\u0323\u0302",
    "the same letters composed": "\u00e9t\u00e9 \u00e5 \u1ed9",
    "marks on marks": "Z\u0351\u036b\u0343a\u0321\u034al\u0322\u035c",
    "right to left": "كلبان في الثلج، שני כלבים בשלג",
    "both directions": "two كلبان dogs في the 雪",
    "direction marks": "\u202btwo\u202c dogs\u200f",
    "emoji": "🐶🐶❄️ dogs!",
    "emoji of several code points": "👩‍👩‍👧‍👦 🏳️‍🌈 🇭🇺 👍🏽",
    "symbols that no vocabulary has": "\U00013000\U0001d11e \ue000 ☃",
    "mixed scripts": "犬dog犬 कुत्ताdog Собакаdog犬",
    "no spaces": "雪の中の二匹の犬雪地里的两只狗",
    "thai": "สุนัขสองตัวในหิมะ",
    "conjuncts": "क्षत्रिय বরফে ক্ষ",
    "joiners": "می‌خواهم ක්‍ෂ",
    "case": "TWO Dogs İSTANBUL ıI ǅ ß ẞ",
    "digits and punctuation": "3.14 — ½ ２０ 'don't' \"x\"… (a)/[b]{c} <d>",
    "half width and ligatures": "ﾊﾝｶｸ ﬁ ﷺ ㎏",
    "nul": "two\0dogs",
    "controls": "a\x07b\x1bc\x7fd\x80",
    "replacement and noncharacters": "\ufffd\ufffe\uffff\U0010ffff",
    "html": "two &amp; dogs &lt;b&gt;",
    "wordpiece's own": "[CLS] two [SEP] [MASK] [PAD] [UNK]",
    "clip's own": "<|startoftext|> two <|endoftext|>",
    "roberta's own": "<s> two </s> <pad> <unk> <mask>",
    "very long word": "a" * 3000,
    "zalgo": "a" + "\u0301" * 500,
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_texts_as_the_checkpoints_own_tokenizer(case: Case, name: str) -> None:
    assert list(case.ours.tokenize(AWKWARD[name]).ids) == case.ids(AWKWARD[name])


@pytest.mark.parametrize("language", LANGUAGES)
def test_40_languages_as_the_checkpoints_own_tokenizer(case: Case, language: str) -> None:
    phrases = list(load_vocabularies()[language].phrases())
    assert len(phrases) > 60
    texts = [*phrases, " ".join(phrases)]
    expected = [case.ids(text) for text in texts]
    assert [list(case.ours.tokenize(text).ids) for text in texts] == expected
    # Not all alike: the comparison has something to compare.
    assert len({tuple(ids) for ids in expected}) > 40


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_as_the_checkpoints_own_tokenizer(kind: str, text: str, cases: dict[str, Case]) -> None:
    tokens = cases[kind].ours.tokenize(text)
    assert list(tokens.ids) == cases[kind].ids(text)
    assert 0 <= tokens.unknown <= len(tokens.ids) <= cases[kind].preprocessing.context_length


@pytest.mark.parametrize("text", ["", "   ", "\n\t"], ids=repr)
def test_empty_and_blank_have_the_two_special_tokens_only(case: Case, text: str) -> None:
    tokens = case.ours.tokenize(text)
    assert len(tokens.ids) == 2
    assert (tokens.truncated, tokens.unknown) == (False, 0)


# ---- truncation


def test_context_lengths_are_those_of_the_layouts(cases: dict[str, Case]) -> None:
    found = {kind: case.preprocessing.context_length for kind, case in cases.items()}
    # XLM-R counts its 140 positions from behind the padding id, which is 1.
    assert found == {"clip-bpe": 77, "wordpiece-json": 128, "wordpiece-vocab": 140, "unigram": 138}


def text_of(case: Case, count: int) -> str:
    """A text that the checkpoint's own tokenizer makes `count` tokens of, special ones included."""
    text = ""
    for word in ["1 "] * count:
        if len(case.all_ids(text)) == count:
            break
        text += word
    assert len(case.all_ids(text)) == count
    return text


@pytest.mark.parametrize("excess", [-1, 0, 1, 2, 50])
def test_truncation_at_the_context_length_is_reported(case: Case, excess: int) -> None:
    longest = case.preprocessing.context_length
    text = text_of(case, longest + excess)
    tokens = case.ours.tokenize(text)
    assert list(tokens.ids) == case.ids(text)
    assert len(tokens.ids) == min(longest, longest + excess)
    assert tokens.truncated is (excess > 0)
    # The end token is kept whatever is cut.
    assert tokens.ids[-1] == case.all_ids("")[-1]


def test_truncated_texts_are_those_with_more_tokens_than_fit(case: Case) -> None:
    phrases = [p for v in load_vocabularies().values() for p in v.example]
    texts = [" ".join(phrases[: count + 1]) for count in range(0, len(phrases), 2)]
    expected = [len(case.all_ids(text)) > case.preprocessing.context_length for text in texts]
    assert len(set(expected)) == 2
    assert [case.ours.tokenize(text).truncated for text in texts] == expected


# ---- unknown tokens


@pytest.mark.parametrize("kind", ["wordpiece-json", "wordpiece-vocab"])
@pytest.mark.parametrize(("text", "count"), [("", 0), ("1 2 3", 0), ("☃", 1), ("1 ☃ 2 \U00013000", 2)])
def test_unknown_tokens_are_counted(kind: str, text: str, count: int, cases: dict[str, Case]) -> None:
    case = cases[kind]
    assert case.all_ids(text).count(case.original.unk_token_id) == count
    assert case.ours.tokenize(text).unknown == count


@pytest.mark.parametrize(("text", "count"), [("☃", 1), ("1 \U00013000 2 ☃", 2)])
def test_unknown_tokens_of_a_unigram_are_counted(text: str, count: int, cases: dict[str, Case]) -> None:
    case = cases["unigram"]
    assert case.all_ids(text).count(case.original.unk_token_id) == count
    assert case.ours.tokenize(text).unknown == count


@pytest.mark.parametrize("language", LANGUAGES)
def test_byte_level_bpe_knows_everything(language: str, cases: dict[str, Case]) -> None:
    """CLIP names its end token as unknown token: the end of a text is not to be counted."""
    case = cases["clip-bpe"]
    assert case.original.unk_token_id == case.original.eos_token_id
    texts = [*load_vocabularies()[language].example, "☃\U00013000\0"]
    assert [case.ours.tokenize(text).unknown for text in texts] == [0, 0, 0, 0]


def test_unknown_tokens_that_were_cut_off_are_not_counted(cases: dict[str, Case]) -> None:
    case = cases["wordpiece-json"]
    longest = case.preprocessing.context_length
    assert case.ours.tokenize("☃ " * 1000).unknown == longest - 2
    assert case.ours.tokenize("1 " * 1000 + "☃").unknown == 0


# ---- padding


def test_padding(case: Case) -> None:
    pad = case.preprocessing.pad_token_id
    assert pad == case.original.pad_token_id
    input_ids, attention_mask = case.ours.pad([(7, 8, 9), (5,), (6, 4)])
    assert input_ids.dtype == attention_mask.dtype == np.int64
    assert input_ids.tolist() == [[7, 8, 9], [5, pad, pad], [6, 4, pad]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]


def test_padding_as_the_checkpoints_own_tokenizer(case: Case) -> None:
    texts = ["Two dogs in the snow", "", "雪", "1 " * 500]
    expected = case.original(
        texts, padding=True, truncation=True, max_length=case.preprocessing.context_length
    )
    input_ids, attention_mask = case.ours.pad([case.ours.tokenize(text).ids for text in texts])
    assert input_ids.tolist() == expected["input_ids"]
    assert attention_mask.tolist() == expected["attention_mask"]


def test_padding_of_equal_rows_adds_nothing(case: Case) -> None:
    input_ids, attention_mask = case.ours.pad([(3, 4), (5, 6)])
    assert input_ids.tolist() == [[3, 4], [5, 6]]
    assert attention_mask.all()


# ---- definition


def test_padding_and_truncation_of_the_definition_do_not_count(case: Case) -> None:
    """The spec decides, whatever a `tokenizer.json` says of its own."""
    definition = json.loads(case.definition)
    assert definition["padding"] is None
    assert definition["truncation"] is None
    definition["truncation"] = {
        "max_length": 5,
        "stride": 0,
        "strategy": "LongestFirst",
        "direction": "Right",
    }
    definition["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 9,
        "pad_type_id": 0, "pad_token": "x",
    }  # fmt: skip
    text = json.dumps(definition)
    tokenizer = Tokenizer(text, replace(case.preprocessing, tokenizer_sha256=sha256(text.encode())))
    phrase = "Two dogs in the snow at night"
    assert tokenizer.tokenize(phrase) == case.ours.tokenize(phrase)
    assert len(tokenizer.tokenize(phrase).ids) > 5


def test_another_definition_is_refused(case: Case) -> None:
    with pytest.raises(SpecError, match=r"tokenizer: SHA-256 .* the spec says .*make export"):
        Tokenizer(case.definition + " ", case.preprocessing)


# ---- forward passes


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 9))
def test_texts_of_a_pass_have_one_length(lengths: list[int], max_batch: int) -> None:
    groups = length_groups(lengths, max_batch)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len({lengths[index] for index in group}) == 1 for group in groups)
    # In as few passes as there may be.
    assert len(groups) == sum(-(-lengths.count(length) // max_batch) for length in set(lengths))


def test_lengths_of_passes_are_few_and_within_the_context(case: Case) -> None:
    most = case.preprocessing.context_length
    found = [case.ours.padded(tokens) for tokens in range(1, most + 1)]
    assert all(tokens <= length < tokens + 4 for tokens, length in enumerate(found, 1))
    assert {length % 4 for length in found} <= {0, most % 4}
    assert found[-1] == most


def test_no_text_no_pass() -> None:
    assert length_groups([], 8) == []


# ---- ids and rows


def with_added_token(definition: str, identifier: int) -> str:
    content = json.loads(definition)
    content["added_tokens"].append(
        {
            "id": identifier, "content": "<dogs>", "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": False,
        }
    )  # fmt: skip
    return json.dumps(content)


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_has_a_row(kind: str, cases: dict[str, Case]) -> None:
    """CASES 3, at loading: an id beyond the embedding table would raise inside a batch of many callers."""
    case = cases[kind]
    largest = largest_token_id(tokenizers.Tokenizer.from_str(case.definition))
    assert largest < case.preprocessing.vocabulary_size
    Tokenizer(case.definition, replace(case.preprocessing, vocabulary_size=largest + 1))
    with pytest.raises(
        SpecError, match=f"largest token id is {largest}, the encoder's embedding table has {largest} rows"
    ):
        Tokenizer(case.definition, replace(case.preprocessing, vocabulary_size=largest))


def test_added_tokens_count(cases: dict[str, Case]) -> None:
    """CASES 3: beyond the vocabulary proper."""
    case = cases["wordpiece-json"]
    definition = with_added_token(case.definition, 2000)
    preprocessing = replace(case.preprocessing, tokenizer_sha256=sha256(definition.encode()))
    with pytest.raises(SpecError, match=r"largest token id is 2000, .* has 2000 rows"):
        Tokenizer(definition, preprocessing)
    ours = Tokenizer(definition, replace(preprocessing, vocabulary_size=2001))
    assert ours.tokenize("<dogs>").ids[1:-1] == (2000,)


def test_special_tokens_have_ids_of_their_own(cases: dict[str, Case]) -> None:
    """CASES 3: the post-processor's, whatever the vocabulary says."""
    content = json.loads(cases["wordpiece-json"].definition)
    content["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [2345]
    assert largest_token_id(tokenizers.Tokenizer.from_str(json.dumps(content))) == 2345
