"""Tokenizers of models to train."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

# The value of `--tokenizer` for a tokenizer of the words of the training captions.
CAPTIONS_TOKENIZER = "captions"


def load_tokenizer(name: str, captions: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of the Hub, or that of `build_tokenizer` for the name `CAPTIONS_TOKENIZER`."""
    return build_tokenizer(captions) if name == CAPTIONS_TOKENIZER else AutoTokenizer.from_pretrained(name)


def build_tokenizer(captions: Iterable[str]) -> BertTokenizerFast:
    """
    A WordPiece tokenizer whose vocabulary is the words of `captions`, most frequent first, and letters and digits, into
    which it splits other words.
    """
    splitter = BertTokenizerFast(vocab={"[UNK]": 0}).backend_tokenizer
    words: Counter[str] = Counter()
    for caption in captions:
        text = splitter.normalizer.normalize_str(caption)
        words.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(text))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    by_frequency = sorted(words, key=lambda word: (-words[word], word))
    vocabulary = dict.fromkeys([*special, *by_frequency, *",.'-", *characters, *(f"##{each}" for each in characters)])
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)})


def token_id_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of `SwinBertConfig` that depend on the tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
