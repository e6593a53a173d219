"""Random numbers that depend on identity, not on order.

Every worker, host and restart draws the same numbers.
"""

import hashlib

import numpy as np
from jaxtyping import Float


def uniforms(n: int, salt: str, sample_id: bytes) -> tuple[float, ...]:
    """Returns `n` numbers in [0, 1), at most 8, from a BLAKE2b hash of all arguments.

    >>> uniforms(2, "crop", b"sample") == uniforms(2, "crop", b"sample")
    True
    """
    digest = hashlib.blake2b(f"{salt}:".encode() + sample_id, digest_size=8 * n)
    data = digest.digest()
    words = (data[8 * i : 8 * i + 8] for i in range(n))
    return tuple((int.from_bytes(word, "big") >> 11) / 2**53 for word in words)


def many_uniforms(n: int, salt: str, sample_id: bytes) -> Float[np.ndarray, "n"]:
    """Returns `n` numbers in [0, 1), for any `n`, from SHAKE-128.

    NumPy's generators take three times as long to set up, and may change.
    """
    data = hashlib.shake_128(f"{salt}:".encode() + sample_id).digest(8 * n)
    return (np.frombuffer(data, ">u8") >> 11) / 2**53
