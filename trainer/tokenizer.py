"""Trains a vocabulary, a sentencepiece BPE model, from the texts of training shards.

    python -m trainer.tokenizer --data RUN/tfrecords --vocabulary-size 32000 \\
        --output FILE.model

Its conventions are those of `trainer.data.text_tokenizer`, which reads it.
"""

import argparse
import io
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

from pipeline.storage.file_errors import add_path
from recipes import command_line

command_line.begin(__name__)

import sentencepiece

from trainer.config import PAD_ID, RunConfig
from trainer.data.shards import RecordError, Shards, check_share
from trainer.data.text_tokenizer import UNKNOWN_ID

# A vocabulary does not improve with more text than this, and reading costs time.
MAX_SAMPLES = 1_000_000
_N_PER_BLOCK = 128  # samples; some 10 MB
MIN_SIZE = 3  # padding, unknown, and one piece of text
# Sentencepiece leaves out longer texts; its own limit is 4,192.
MAX_TEXT_BYTES = 1 << 16


def train_vocabulary(texts: Iterable[str], vocabulary_size: int) -> bytes:
    """Trains a sentencepiece model with exactly `vocabulary_size` pieces.

    The same texts in the same order give the same bytes. Raises ValueError if the size
    is below `MIN_SIZE`, or if the texts hold too few different words for that many
    pieces; raises what `texts` raises, too.
    """
    _check_size(vocabulary_size)
    model = io.BytesIO()
    failures: list[RecordError] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lower_case(texts, failures),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary_size,
            pad_id=PAD_ID,
            unk_id=UNKNOWN_ID,
            bos_id=-1,
            eos_id=-1,
            max_sentence_length=MAX_TEXT_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from error
        raise ValueError(_explain(str(error), vocabulary_size)) from error
    return model.getvalue()


def _check_size(vocabulary_size: int) -> None:
    if vocabulary_size < MIN_SIZE:
        raise ValueError(
            f"--vocabulary-size={vocabulary_size}: expected at least {MIN_SIZE}"
        )


def _lower_case(texts: Iterable[str], failures: list[RecordError]) -> Iterator[str]:
    """Keeps the error that stops the texts: sentencepiece would hide its kind."""
    try:
        for text in texts:
            yield text.lower()
    except RecordError as error:
        failures.append(error)
        raise


def shard_texts(shards: Shards) -> Iterator[str]:
    """Yields the alt text and all captions of up to `MAX_SAMPLES` evenly spread
    samples.

    Damaged records are left out and named. Raises RecordError if they are many.
    """
    stride = -(-len(shards) // MAX_SAMPLES)
    indices = range(0, len(shards), stride)
    # A request to a store brings some samples that follow each other, used or not.
    shards = shards.in_blocks(max(1, _N_PER_BLOCK // stride), n_kept=1)
    n_skipped = 0
    for index in indices:
        try:
            sample = shards[index]
        except RecordError as error:
            logging.warning("skipped %s", error)
            n_skipped += 1
            max_share = RunConfig.max_skipped_share
            check_share(n_skipped, len(indices), len(indices), max_share)
            continue
        texts = [sample.alt_text]
        for name in sorted(sample.captions):
            texts.extend(sample.captions[name])
        yield from filter(None, texts)


def _explain(message: str, vocabulary_size: int) -> str:
    """Sentencepiece's complaint about the vocabulary size, in our words."""
    largest = re.search(r"set it to a value <= (\d+)", message)
    if largest:
        return (
            f"--vocabulary-size={vocabulary_size}: these texts fill at most"
            f" {largest[1]} pieces, expected no more"
        )
    smallest = re.search(r"smaller than required_chars\D*(\d+)\D+(\d+)", message)
    if smallest:
        return (
            f"--vocabulary-size={vocabulary_size}: expected more than {smallest[2]},"
            " the number of different characters"
        )
    return f"--vocabulary-size={vocabulary_size}: {message.splitlines()[-1]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module."""
    flags: argparse.Namespace = _parser().parse_args(arguments)
    with command_line.exits(command_line.WRONG_USAGE, ValueError, OSError):
        _check_size(flags.vocabulary_size)  # before any file is read
        shards = Shards(flags.data)
        with command_line.exits(command_line.FAILED, RecordError):
            model = train_vocabulary(shard_texts(shards), flags.vocabulary_size)
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        with add_path(flags.output):
            flags.output.write_bytes(model)
    print(f"{flags.output}: {flags.vocabulary_size} pieces")


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog="python -m trainer.tokenizer",
        description="Trains a vocabulary from the texts of training shards.",
    )
    parser.add_argument("--data", required=True, metavar="RUN/tfrecords")
    parser.add_argument("--vocabulary-size", type=int, default=32_000, metavar="N")
    parser.add_argument(
        "--output", required=True, type=pathlib.Path, metavar="FILE.model"
    )
    return parser


if __name__ == "__main__":
    main()
