"""Tokenizers of every make that matters for decoding, trained on a few lines: each splits what it has not seen into bytes."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["The sky is blue and the sea is blue", "the sky, the sea. The end", "日本の空は青い", "ab abc abcd"] * 3
TEXTS = [
    "The sky is blue",
    " leading and  double  spaces ",
    "日本語の空は青い、海も青い。",
    "emoji 😀👩‍👩‍👧 and flags 🇯🇵!",
    "combining cafe\u0301 n\u0303 \u0e01\u0e33",
    "a\nb\tc\r\n  d",
    "Ω≈ç√∫ 𝔘𝔫𝔦",
    "x",
    "\ufffd a real replacement character",
]


def _byte_level(normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|end|>", "<|im|>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _llama_2() -> Tokenizer:
    """Spaces as U+2581, one put before the text, bytes for what is unknown; the decoder strips one space, once."""
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence(spaces)
    trained.train_from_iterator(CORPUS[:2], trainer)
    state = json.loads(trained.to_str())["model"]
    vocab = dict(state["vocab"])
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    merges = [tuple(merge) for merge in state["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return tokenizer


def _metaspace() -> Tokenizer:
    """T5's: unigram, spaces as U+2581, an end token behind the text."""
    # By hand: what the trainer finds differs from run to run. Letters, and words that are likelier than their letters.
    letters = sorted({c for text in [*CORPUS, *TEXTS] for c in text if c != " "} | {"▁"})
    words = ["▁the", "▁The", "▁sky", "▁is", "▁blue", "▁and", "▁sea", "▁end", "▁a", "ab", "abc", "th", "青い", "日本"]
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((word, -5.0) for word in words), *((c, -8.0) for c in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return tokenizer


def _word_piece() -> Tokenizer:
    """BERT's: lower case, no accents, spaces gone; what it decodes to is not what it read."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    letters = sorted({c for text in TEXTS for c in text.lower() if not c.isspace()})
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, initial_alphabet=letters, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


MAKES = {
    "byte-level": _byte_level,
    "byte-level NFC": lambda: _byte_level(normalizers.NFC()),
    "llama-2": _llama_2,
    "metaspace": _metaspace,
    "wordpiece": _word_piece,
}


@cache
def tiny_tokenizer(make: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=MAKES[make]())
