"""Randomness that hangs on identity, not on order.

The same draw comes out on every worker, host and restart.
"""

import hashlib

import numpy as np
from jaxtyping import Float


def uniforms(n: int, salt: str, sample_id: bytes) -> tuple[float, ...]:
    """`n` numbers in [0, 1), at most 8, from a BLAKE2b hash of the arguments."""
    digest = hashlib.blake2b(f"{salt}:".encode() + sample_id, digest_size=8 * n)
    data = digest.digest()
    words = (data[8 * i : 8 * i + 8] for i in range(n))
    return tuple((int.from_bytes(word, "big") >> 11) / 2**53 for word in words)


def many_uniforms(n: int, salt: str, sample_id: bytes) -> Float[np.ndarray, "n"]:
    """Any number of numbers in [0, 1), from SHAKE-128, whose output has no end.

    NumPy's generators take three times as long to set up, and may change.
    """
    data = hashlib.shake_128(f"{salt}:".encode() + sample_id).digest(8 * n)
    return (np.frombuffer(data, ">u8") >> 11) / 2**53
