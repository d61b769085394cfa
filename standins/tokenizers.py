"""Writes small tokenizers in the files of the hub's checkpoints."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from demo.captions import load_vocabularies
from demo.layouts import write_clip_tokenizer_files


def corpus() -> list[str]:
    """The vocabulary's phrases in 40 languages: something to train tokenizers on."""
    return [phrase for v in load_vocabularies().values() for phrase in v.phrases()]


def write_clip_tokenizer(folder: Path, size: int, context_length: int) -> dict[str, int]:
    """`vocab.json` and `merges.txt` as CLIP has them: a small BPE filled up to the wanted size."""
    bpe = Tokenizer(
        models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    )
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=min(size, 4000) - 2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    trained = json.loads(bpe.to_str())["model"]
    # CLIP's own order: all byte symbols, the same with </w>, then merges, then the two special tokens.
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = symbols + [s + "</w>" for s in symbols]
    merges = []
    for merge in trained["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        if len(tokens) >= size - 2:
            break
        if left in tokens and right in tokens and left + right not in tokens:
            merges.append(f"{left} {right}")
            tokens.append(left + right)
    tokens += [f"unused{i}</w>" for i in range(size - 2 - len(tokens))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    write_clip_tokenizer_files(
        folder, vocabulary, merges, {"model_max_length": context_length, "do_lower_case": True}
    )
    return vocabulary


def write_wordpiece(folder: Path, size: int, *, with_fast_file: bool) -> None:
    """A cased multilingual BERT tokenizer: `vocab.txt`, and `tokenizer.json` where the layout has it."""
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=False)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    wordpiece.train_from_iterator(
        corpus(),
        trainers.WordPieceTrainer(vocab_size=min(size, 6000), special_tokens=special, show_progress=False),
    )
    vocabulary = wordpiece.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"[unused{i}]" for i in range(size - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    write_json(
        folder / "tokenizer_config.json",
        {
            "do_lower_case": False,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "model_max_length": 512,
            "tokenizer_class": "BertTokenizer" if not with_fast_file else "DistilBertTokenizer",
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
    )
    if with_fast_file:
        wordpiece.model = models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]")
        wordpiece.decoder = decoders.WordPiece()
        wordpiece.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
        wordpiece.save(str(folder / "tokenizer.json"))


def write_unigram(folder: Path, size: int) -> None:
    """XLM-R's tokenizer: a Unigram model behind Metaspace, as `tokenizer.json`."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(
        corpus(),
        trainers.UnigramTrainer(
            vocab_size=min(size, 2000), special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    vocabulary = unigram.get_vocab()
    unigram.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])],
    )
    unigram.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    write_json(
        folder / "tokenizer_config.json",
        {**names, "model_max_length": 512, "tokenizer_class": "XLMRobertaTokenizer"},
    )


def sentencepiece_model(size: int = 1900, **special: Any) -> bytes:
    """A Unigram model in SentencePiece's own format, as XLM-R is published with.

    Args:
        special: ids of special tokens, by SentencePiece's names of them, such as `pad_id`.
    """
    import io

    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=written,
        vocab_size=size,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
        num_threads=1,
        **special,
    )
    return written.getvalue()


def write_siglip_tokenizer(folder: Path, size: int, context_length: int) -> None:
    """SigLIP's: a SentencePiece model, and a `tokenizer.json` of it behind what SigLIP does to a text."""
    # Generated, so that no checker knows what is in it.
    from sentencepiece import sentencepiece_model_pb2 as generated

    model_proto: Any = vars(generated)["ModelProto"]
    # As T5's, which SigLIP took: padding, end and unknown first, and no beginning.
    content = sentencepiece_model(min(size, 1900), pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    proto = model_proto.FromString(content)
    for number in range(size - len(proto.pieces)):
        proto.pieces.add(piece=f"<unused{number}>", score=-100.0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    unigram = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], proto.trainer_spec.unk_id))
    unigram.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.add_special_tokens(["</s>", "<unk>"])
    unigram.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", unigram.token_to_id("</s>"))]
    )
    unigram.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {
            **special,
            "do_lower_case": True,
            # Published so: padding is seen, and a mask would hide it.
            "model_input_names": ["input_ids"],
            "model_max_length": context_length,
            "processor_class": "SiglipProcessor",
            "tokenizer_class": "SiglipTokenizer",
        },
    )


def write_gemma_tokenizer(folder: Path, size: int, context_length: int) -> None:
    """SigLIP 2's: Gemma's BPE as `tokenizer.json`, which does not lower the case that training lowered."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, 4000) - len(byte_tokens), special_tokens=special, show_progress=False
    )
    bpe.train_from_iterator(corpus(), trainer)
    definition = json.loads(bpe.to_str())
    vocabulary = definition["model"]["vocab"]
    for token in (*byte_tokens, *(f"<unused{number}>" for number in range(size))):
        if len(vocabulary) < size:
            vocabulary[token] = len(vocabulary)
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<eos>", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
            {"SpecialToken": {"id": "<eos>", "type_id": 1}},
        ],
        "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    Tokenizer.from_str(json.dumps(definition)).save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", names)
    write_json(
        folder / "tokenizer_config.json",
        {
            **names,
            "add_bos_token": False,
            "add_eos_token": True,
            "model_input_names": ["input_ids"],
            "model_max_length": context_length,
            "padding_side": "right",
            "processor_class": "SiglipProcessor",
            "tokenizer_class": "GemmaTokenizer",
        },
    )


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, and the folder that it is in; `golden.json` knows some to the last byte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))
