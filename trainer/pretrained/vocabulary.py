"""Whether a trained model and a run give the same tokens the same ids.

The sentencepiece models must have the same bytes. A Hugging Face folder without one has
a `tokenizer.json`, whose pieces are compared. Texts are lower-cased here, so they must
have been lower-cased there.
"""

import pathlib
import sys

import sentencepiece

from recipes.json_file import read_object
from trainer.loop import workdir

_JSON, _SETTINGS = "tokenizer.json", "tokenizer_config.json"


def check_same_vocabulary(
    tokenizer: pathlib.Path, folder: pathlib.Path, name: str
) -> None:
    """Raises ValueError if the model in `folder` was trained with another vocabulary.

    `name` is the setting that names the model. Warns on standard error if there is
    nothing to compare.
    """
    theirs, as_json = folder / workdir.TOKENIZER, folder / _JSON
    if theirs.exists():
        digests = map(workdir.tokenizer_digest, (theirs, tokenizer))
        is_same = len({*digests}) == 1
    elif as_json.exists():
        theirs, is_same = as_json, _read_pieces(as_json) == _read_own_pieces(tokenizer)
    else:
        print(
            f"warning: {name}: no {workdir.TOKENIZER} next to it, so it is unknown"
            f" whether data.tokenizer={tokenizer} is its own",
            file=sys.stderr,
        )
        return
    if not is_same:
        raise ValueError(
            f"{name}: its vocabulary {theirs} is another than data.tokenizer="
            f"{tokenizer}, expected the same"
        )
    settings = folder / _SETTINGS
    if settings.exists() and not read_object(settings).get("do_lower_case", True):
        raise ValueError(f"{settings}: do_lower_case=false, expected true as here")


def _read_own_pieces(path: pathlib.Path) -> dict[str, int]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return {processor.id_to_piece(i): i for i in range(processor.vocab_size())}


def _read_pieces(path: pathlib.Path) -> dict[str, int]:
    """Piece to id. Raises ValueError when it is no tokenizer.json."""
    values = read_object(path)
    try:
        vocab = values["model"]["vocab"]
        if isinstance(vocab, list):  # of a unigram model: pieces and their scores
            vocab = {piece: number for number, (piece, _) in enumerate(vocab)}
        added = {token["content"]: token["id"] for token in values["added_tokens"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error!r}; expected a tokenizer.json") from error
    return vocab | added
