"""Random numbers that depend on identities, never on the order of work.

In: ids and a salt. Out: the same numbers on every worker, in every run and retry.
"""

import hashlib
from collections.abc import Iterable

import numpy as np


def unit_hashes(sample_ids: Iterable[bytes], salt: str) -> np.ndarray:
    """Maps each id to a number in [0, 1): float64 [n].

    >>> unit_hashes([b"a", b"b"], "salt").round(3)
    array([0.168, 0.349])
    """
    digests = b"".join(
        hashlib.blake2b(sample_id, digest_size=8, key=salt.encode()).digest()
        for sample_id in sample_ids
    )
    return (np.frombuffer(digests, ">u8") >> 11) / 2**53
