"""Texts in, rows of token ids out, by a sentencepiece BPE vocabulary.

The conventions are those of the released TIPS models: lower-cased text, id 0 is
padding, id 1 unknown, no begin or end token. `trainer.tokenizer` trains a vocabulary.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
import sentencepiece
from jaxtyping import Int32

from trainer.config import PAD_ID, TextConfig

UNKNOWN_ID = 1


class Tokenizer:
    """Maps texts to int32 rows of `max_tokens` ids, cut or padded with 0 on the right.

    tokenizer = Tokenizer("RUN/tokenizer.model", max_tokens=64)
    ids = tokenizer(["a red circle", "two green triangles"])  # [2, 64]
    """

    def __init__(self, path: str | pathlib.Path, max_tokens: int):
        """Raises ValueError if `path` is no sentencepiece model of our conventions."""
        self.max_tokens = max_tokens
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"data.tokenizer={path}: expected a sentencepiece model, as"
                " `python -m trainer.tokenizer` makes one"
            ) from error
        ids = (self._processor.pad_id(), self._processor.unk_id())
        if ids != (PAD_ID, UNKNOWN_ID):
            raise ValueError(
                f"data.tokenizer={path}: padding, unknown = {ids}, expected (0, 1)"
            )

    @property
    def vocabulary_size(self) -> int:
        """The number of pieces, which is the number of ids."""
        return self._processor.vocab_size()

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n tokens"]:
        ids = np.empty((len(texts), self.max_tokens), np.int32)
        for text, row in zip(texts, ids, strict=True):
            self.write(text, row)
        return ids

    def write(self, text: str, out: Int32[np.ndarray, "tokens"]) -> None:
        """Writes the ids of one text into a row.

        For a list of texts sentencepiece starts threads, at four times the cost.
        """
        found = self._processor.encode(text.lower())[: self.max_tokens]
        out[: len(found)] = found
        out[len(found) :] = PAD_ID


def check_size(tokenizer: Tokenizer, config: TextConfig) -> None:
    """Raises ValueError unless the model has one embedding per piece."""
    if config.vocabulary_size != tokenizer.vocabulary_size:
        raise ValueError(
            f"model.text.vocabulary_size={config.vocabulary_size}: expected"
            f" {tokenizer.vocabulary_size}, the size of data.tokenizer"
        )
