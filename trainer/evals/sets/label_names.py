"""Names of classes: those that a data set gives, and what is no name.

A set gives them in `classes.json` (a list, or an object from folder, WordNet id or
number to name), `classes.txt` (one name per line, with or without its number or id
before it), Hugging Face's metadata, ImageNet's `LOC_synset_mapping.txt` or
`imagenet_class_index.json`.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

CLASSES = "classes.json"
_UNNAMED = re.compile(
    r"((class|label|category|cls|id|c)[-_ ]?)?[-+]?\d+(\.\d+)?|n\d{8}|Q\d+|/?m/0\w+",
    re.I,
)
_BEFORE_A_NAME = re.compile(r"(n\d{8}[-_ ]+|\d+\.[_ ]*)(?=\D)")
_ID_AND_NAME = re.compile(r"(n\d{8}|\d+)[\s,:]+(\S.*)")


@dataclasses.dataclass(frozen=True)
class Names:
    """Names of classes.

    `listed` has all of them, in order of their numbers, or is empty.
    """

    listed: tuple[str, ...] = ()
    by_id: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""  # who says so
    is_told: bool = False  # by a setting, whatever the set says itself

    def __bool__(self) -> bool:
        return bool(self.listed)

    def name_of(self, label: object) -> str | None:
        """Returns the name of a number, counted from 0, or of an id; else the label
        itself.

        None without a label, which Hugging Face writes as -1. Raises ValueError on a
        number without a name.
        """
        label = _plain(label)
        if label is None or label == "" or (label == -1 and self.listed):
            return None
        if str(label) in self.by_id:
            return self.by_id[str(label)]
        is_number = isinstance(label, int) or label.isdecimal()
        if not self.listed or not is_number or label in self.listed:
            return str(label)
        if str(int(label)) in self.by_id:  # of a folder `007`
            return self.by_id[str(int(label))]
        names = self.listed if not self.by_id else tuple(self.by_id.values())
        is_counted = not any(key.isdecimal() for key in self.by_id)
        if not is_counted or int(label) not in range(len(names)):
            expected = (
                f"0 to {len(names) - 1}" if is_counted else "a number with a name"
            )
            raise ValueError(f"label {label}: expected {expected}, by {self.source}")
        return names[int(label)]


def read(path: pathlib.Path) -> Names:
    """Reads a JSON file.

    Raises ValueError unless it is a list or an object of names.
    """
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; expected a JSON list of names") from error
    names = list(found.values()) if isinstance(found, Mapping) else found
    is_names = isinstance(names, list) and all(isinstance(n, str) for n in names)
    if not is_names or not names:
        raise ValueError(
            f"{path}: expected a JSON list of names, or an object from folder or number"
            " to name"
        )
    if isinstance(found, Mapping):
        return _by_id(found, str(path))
    return Names(tuple(names), source=str(path))


def read_told(path: str) -> Names:
    """Reads the file of the setting `classes`; no names if it is ""."""
    if not path:
        return Names()
    return dataclasses.replace(read(pathlib.Path(path)), is_told=True)


def find_in(folders: Sequence[pathlib.Path]) -> Names:
    """Reads the names in the first of the folders that has a file of names."""
    for folder in folders:
        for file, reader in FILES.items():
            if (folder / file).is_file():
                return reader(folder / file)
    return Names()


def parse_features(features: object, column: str, source: str) -> Names:
    """Returns the names in Hugging Face's description of the columns."""
    feature = features.get(column) if isinstance(features, Mapping) else None
    if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
        names = feature.get("names") or ()
        return Names(tuple(map(str, names)), source=f"{source}: column {column}")
    return Names()


def spoken_name(name: str) -> str:
    """Returns a name as in a sentence: with spaces, and no number or id before it."""
    return " ".join(_BEFORE_A_NAME.sub("", name, count=1).replace("_", " ").split())


def find_unnamed(names: Collection[str]) -> list[str]:
    """Returns those that are numbers or ids rather than names."""
    return [name for name in names if not name.strip() or _UNNAMED.fullmatch(name)]


def _plain(label: object) -> int | str | None:
    """None for NaN, and for lists and objects."""
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, bytes):
        label = label.decode()
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool):
        return int(label)
    if isinstance(label, str):
        return label.strip()
    return label if isinstance(label, int) else None


def _by_id(id_to_name: Mapping[str, str], source: str) -> Names:
    listed = tuple(dict.fromkeys(id_to_name.values()))
    return Names(listed, id_to_name, source)


def _read_index(path: pathlib.Path) -> Names:
    """Keras' {"0": ["n01440764", "tench"]}."""
    try:
        found = json.loads(path.read_text("utf-8-sig"))
        pairs = [(number, *ids) for number, ids in found.items()]
        names = {key: name for number, wnid, name in pairs for key in (number, wnid)}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: expected an object of lists") from error
    return _by_id(names, str(path))


def _read_lines(path: pathlib.Path) -> Names:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    lines = [line for line in lines if line]
    pairs = [_ID_AND_NAME.fullmatch(line) for line in lines]
    if lines and all(pairs):
        return _by_id({p[1]: p[2].strip() for p in pairs if p}, str(path))
    return Names(tuple(lines), source=str(path))


def _read_synsets(path: pathlib.Path) -> Names:
    """`n01440764 tench, Tinca tinca`: the first of the names."""
    found = _read_lines(path)
    firsts = {key: name.split(",")[0] for key, name in found.by_id.items()}
    return _by_id(firsts, found.source)


def _read_infos(path: pathlib.Path) -> Names:
    """Hugging Face's dataset_info.json, or dataset_infos.json of several sets."""
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    infos = [found, *found.values()] if isinstance(found, Mapping) else []
    for info in infos:
        features = info.get("features") if isinstance(info, Mapping) else None
        if names := parse_features(features, "label", str(path)):
            return names
    return Names()


FILES: Mapping[str, Callable[[pathlib.Path], Names]] = {
    CLASSES: read,
    "classes.txt": _read_lines,
    "LOC_synset_mapping.txt": _read_synsets,
    "imagenet_class_index.json": _read_index,
    "dataset_info.json": _read_infos,
    "dataset_infos.json": _read_infos,
}
