"""Builds the tokenizers of the tiny checkpoints: Gemma's form, a few hundred tokens.

In: texts. Out: tokenizers that `AutoTokenizer` loads from the folder they are saved to.
They can encode any text, since bytes are tokens too.
"""

import json
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, GemmaTokenizer, Siglip2Tokenizer

_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_LOCATIONS = tuple(f"<loc{i:04d}>" for i in range(1024))
_SEGMENTS = tuple(f"<seg{i:03d}>" for i in range(128))


def siglip_tokenizer(texts: Iterable[str], n_tokens: int) -> Siglip2Tokenizer:
    """Builds a tokenizer that treats texts as SigLIP 2's does.

    It lower-cases, ends every text with `<eos>` and pads on the right. `n_tokens` is an
    upper bound on the vocabulary's size.
    """
    vocab, merges = train_bpe((text.lower() for text in texts), n_tokens)
    return Siglip2Tokenizer(
        vocab=vocab,
        merges=merges,
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        model_input_names=["input_ids"],
    )


def paligemma_tokenizer(
    texts: Iterable[str], n_tokens: int, *, with_locations: bool = True
) -> GemmaTokenizer:
    """Builds a tokenizer with `<image>`, 1024 `<locNNNN>` and 128 `<segNNN>` tokens.

    `n_tokens` is an upper bound on the number of text tokens, which come first. A model
    that never says where things are can do without the last two kinds.
    """
    vocab, merges = train_bpe(texts, n_tokens)
    tokenizer = GemmaTokenizer(
        vocab=vocab, merges=merges, add_bos_token=False, add_eos_token=False
    )
    image = AddedToken("<image>", normalized=False, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [image]})
    if with_locations:
        tokenizer.add_tokens([*_LOCATIONS, *_SEGMENTS])
    return tokenizer


def train_bpe(
    texts: Iterable[str], n_tokens: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learns a vocabulary (specials, newline, bytes, then pieces) and its merges."""
    fixed = (*_SPECIALS, "\n", *_BYTES)
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Replace(" ", "▁")
    # A piece may begin with a space but never span two words.
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens - len(fixed), show_progress=False, special_tokens=[]
    )
    bpe.train_from_iterator(_lines(texts), trainer)
    learned = json.loads(bpe.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocab = {token: i for i, token in enumerate((*fixed, *pieces))}
    return vocab, [tuple(pair) for pair in learned["merges"]]


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Splits texts at newlines, which are tokens of their own and in no piece."""
    for text in texts:
        yield from text.splitlines()
