"""Which folders and files of an evaluation set are splits, by their names.

Pure functions; `trainer.split_names` says how single names are understood.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from trainer.split_names import ALONE, find_sign, has_words

# Folders that may be classes among others: a vehicle, a room.
_THINGS = ("train", *ALONE)
_WITHIN = re.compile(r"train|val|test")  # a longer word: `minitrain`, `Testdaten`

Folder = tuple[str, ...]


def split_of_path(parts: Sequence[str]) -> str | None:
    """Returns the split of a file of samples, by its folders and its own name.

    Raises ValueError if they name several.
    """
    found = {sign.split for part in parts if (sign := find_sign(part))}
    is_own = find_sign(parts[-1]) is not None
    if len(found) > 1 or (has_words(parts[-1]) and not is_own):
        raise ValueError(f"{'/'.join(parts)[-200:]}: expected one split, not several")
    return found.pop() if found else None


def find_split_folders(folders: Collection[Folder]) -> Mapping[Folder, str]:
    """Returns which folders of images, and which of their parents, are splits.

    Adjacent folders are splits if all of them have such names, or several of them, or
    one that can be nothing else. `train` next to `bus`, both with images in them, is a
    class.
    """
    children: dict[Folder, set[str]] = defaultdict(set)
    for folder in folders:
        for depth in range(len(folder)):
            children[folder[:depth]].add(folder[depth])
    flat = set(folders)
    found: dict[Folder, str] = {}
    queue: list[Folder] = [()]
    while queue:
        parent = queue.pop()
        flat_names = {name for name in children[parent] if (*parent, name) in flat}
        splits = _level(children[parent], flat_names)
        for name in children[parent]:
            if name in splits:
                found[*parent, name] = splits[name]
            else:
                queue.append((*parent, name))
    return found


def find_unclear(paths: Iterable[Folder]) -> list[str]:
    """Returns adjacent names that all look like splits and are none that is known."""
    children: dict[Folder, set[str]] = defaultdict(set)
    for path in paths:
        for depth, name in enumerate(path):
            children[path[:depth]].add(name)
    for names in children.values():
        found = [_WITHIN.search(name.lower()) for name in names]
        roots = {root[0] for root in found if root}
        if all(found) and "train" in roots and len(roots) > 1:
            return sorted(names)
    return []


def find_class_like(
    folders: Iterable[Folder], splits: Mapping[Folder, str]
) -> set[str]:
    """Returns names of splits that were taken for classes."""
    parts = {
        folder[depth]
        for folder in folders
        if split_of_folder(folder, splits) is None
        for depth in range(len(folder))
    }
    return {name for name in parts if (sign := find_sign(name)) and sign.is_whole}


def split_of_folder(folder: Folder, splits: Mapping[Folder, str]) -> str | None:
    """Returns the split that a folder is in."""
    above = (folder[:depth] for depth in range(1, len(folder) + 1))
    return next((splits[one] for one in above if one in splits), None)


def _level(names: Collection[str], flat: Collection[str]) -> Mapping[str, str]:
    """Which of adjacent folders are splits; `flat` ones hold images."""
    signs = {name: sign for name in names if (sign := find_sign(name))}
    whole = {name for name, sign in signs.items() if sign.is_whole}
    n_splits = len({sign.split for sign in signs.values()})
    n_whole = len({signs[name].split for name in whole})
    is_deep = any(name not in flat for name in signs)
    if len(signs) == len(names):
        is_level = n_splits > 1 or bool(whole) or is_deep or len(names) == 1
    elif n_whole == 1 and not is_deep:
        others_are_flat = any(name in flat for name in names if name not in signs)
        is_thing = all(name.lower() in _THINGS for name in whole)
        is_level = not (is_thing and others_are_flat)
    else:
        is_level = n_whole > 1 or is_deep
    return {name: sign.split for name, sign in signs.items()} if is_level else {}
