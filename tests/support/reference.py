"""Both encoders once more, in float64 NumPy, one sample and one head at a time."""

import math

import numpy as np


def flat(params: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """Paths joined with "/" to float64 arrays."""
    found = {}
    for name, value in params.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        else:
            found[f"{prefix}{name}"] = np.asarray(value, np.float64)
    return found


def vision(
    params: dict, image: np.ndarray, feed_forward: str, *, is_by_values: bool = False
) -> np.ndarray:
    """Tokens of one image in [0, 1] whose grid is the position grid's: CLS first.

    With `is_by_values` the tokens of the last block see themselves alone.
    """
    p = flat(params)
    prefix = "encoder/ToTokenSequence_0/"
    kernel = p[f"{prefix}embedding/kernel"]
    size = len(kernel)
    patches = []
    for row in range(image.shape[0] // size):
        for column in range(image.shape[1] // size):
            y, x = row * size, column * size
            patch = image[y : y + size, x : x + size]
            embedded = np.einsum("hwc,hwcd->d", patch, kernel)
            position = p[f"{prefix}posembed_input"][0, row, column]
            patches.append(embedded + p[f"{prefix}embedding/bias"] + position)
    tokens = np.concatenate([p[f"{prefix}cls"][0], np.stack(patches)])
    last = values if is_by_values else attention
    tokens = blocks(p, "encoder/transformer/", tokens, feed_forward, last)
    return norm(p, "encoder/encoder_norm/", tokens)


def text(params: dict, ids: np.ndarray) -> np.ndarray:
    """The embedding of one row of ids, by leaving the padding out."""
    p = flat(params)
    ids = ids[ids != 0]
    width = p["token_emb/emb_var"].shape[1]
    tokens = p["token_emb/emb_var"][ids] * math.sqrt(width)
    half = width // 2
    for position in range(len(ids)):
        for i in range(half):
            angle = position / 10_000 ** (i / (half - 1))
            tokens[position, i] += math.sin(angle)
            tokens[position, half + i] += math.cos(angle)
    tokens = blocks(p, "transformer/", tokens, "relu")
    return norm(p, "text_encoder_norm/", tokens).mean(axis=0)


def blocks(p, prefix, tokens, feed_forward, last=None):
    n_blocks = len({k for k in p if k.startswith(prefix) and k.endswith("query/bias")})
    for i in range(n_blocks):
        block = f"{prefix}encoderblock_{i}/"
        normed = norm(p, f"{block}LayerNorm_0/", tokens)
        name = f"{block}MultiHeadDotProductAttention_0/"
        mix = last if last and i == n_blocks - 1 else attention
        tokens = tokens + mix(p, name, normed)
        normed = norm(p, f"{block}LayerNorm_1/", tokens)
        tokens = tokens + mlp(p, block, normed, feed_forward)
    return tokens


def norm(p, prefix, x):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p[f"{prefix}scale"] + p[
        f"{prefix}bias"
    ]


def attention(p, prefix, x):
    n_heads, head_width = p[f"{prefix}query/bias"].shape
    out = p[f"{prefix}out/bias"]
    for head in range(n_heads):
        query, key, value = (
            x @ p[f"{prefix}{part}/kernel"][:, head] + p[f"{prefix}{part}/bias"][head]
            for part in ("query", "key", "value")
        )
        weights = np.exp(query @ key.T / math.sqrt(head_width))
        weights /= weights.sum(axis=1, keepdims=True)
        out = out + weights @ value @ p[f"{prefix}out/kernel"][head]
    return out


def values(p, prefix, x):
    out = p[f"{prefix}out/bias"]
    for head in range(len(p[f"{prefix}value/bias"])):
        kernel, bias = p[f"{prefix}value/kernel"], p[f"{prefix}value/bias"]
        out = out + (x @ kernel[:, head] + bias[head]) @ p[f"{prefix}out/kernel"][head]
    return out


def mlp(p, block, x, feed_forward):
    name = "FFNSwiGluFused_0" if feed_forward == "swiglu" else "MlpBlock_0"

    def dense(number, x):
        layer = f"{block}{name}/Dense_{number}/"
        return x @ p[f"{layer}kernel"] + p[f"{layer}bias"]

    if feed_forward == "swiglu":
        gate = dense(0, x)
        return dense(2, gate / (1 + np.exp(-gate)) * dense(1, x))
    hidden = dense(0, x)
    if feed_forward == "relu":
        return dense(1, np.maximum(hidden, 0))
    inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
    return dense(1, hidden * (1 + np.tanh(inner)) / 2)


def info_nce(image: np.ndarray, text: np.ndarray, temperature: float) -> float:
    """The mean over both directions of the cross-entropy of the matching pair."""
    n, total = len(image), 0.0
    for i in range(n):
        for ours, theirs in ((image, text), (text, image)):
            logits = [cosine(ours[i], theirs[j]) / temperature for j in range(n)]
            total += math.log(sum(math.exp(x) for x in logits)) - logits[i]
    return total / (2 * n)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def sigmoid_loss(
    image: np.ndarray, text: np.ndarray, temperature: float, bias: float
) -> float:
    """Each pair a question of its own: does this text belong to this image?"""
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            logit = cosine(image[i], text[j]) / temperature + bias
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / len(image)


def cross_entropy(student, teacher, bias: np.ndarray) -> np.ndarray:
    """One number for each token; both sides are (vectors, prototypes, temperature)."""
    found = np.zeros(student[0].shape[:2])
    for image, token in np.ndindex(*found.shape):
        ours, theirs = (
            vectors[image, token] @ matrix / temperature
            for vectors, matrix, temperature in (student, teacher)
        )
        p, q = softmax(theirs + bias), softmax(ours)
        found[image, token] = -sum(p[k] * math.log(q[k]) for k in range(len(p)))
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def sinkhorn(logits: np.ndarray, n_iterations: int) -> np.ndarray:
    """Distributions over prototypes for rows of logits, as SwAV's listing has it."""
    q = np.exp(logits)
    n, k = q.shape
    for _ in range(n_iterations):
        for prototype in range(k):
            q[:, prototype] /= k * q[:, prototype].sum()
        for token in range(n):
            q[token] /= n * q[token].sum()
    return q * n


def masked_mean(values: np.ndarray, mask: np.ndarray) -> float:
    """Over each image's masked patches, then over images; 0 for one without any."""
    total = 0.0
    for row, hidden in zip(values, mask, strict=True):
        chosen = [value for value, is_in in zip(row, hidden, strict=True) if is_in]
        total += sum(chosen) / len(chosen) if chosen else 0
    return total / len(values)
