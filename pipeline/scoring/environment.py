"""The environment of a measurement: what may change its last bits.

Library versions, the kind of device and the shape of batches are no part of a
fingerprint: a run goes on after an upgrade. They are recorded in the summaries of the
tables of `score`, and `status` says which of them a run mixes.
"""

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable, Sequence

import pyarrow as pa

from pipeline.scoring.missing_tables import Measure

KEY = "environments"  # of summaries of tables, and of the metadata of parts

_DECODERS = ("simplejpeg", "opencv-python-headless", "pillow", "numpy")
_MODELS = ("jax", "jaxlib", "flax", "transformers")


def describe(measures: Iterable[Measure], batch_size: int) -> str:
    """The environment of this process, as far as these measures depend on it."""
    names: tuple[str, ...] = _DECODERS
    found = {"machine": platform.machine()}
    if "embeddings" in measures:
        names = (*names, *_MODELS)
        found |= {"device": _device_kind(), "batch_size": str(batch_size)}
    found |= {name: importlib.metadata.version(name) for name in names}
    return ", ".join(f"{name} {value}" for name, value in sorted(found.items()))


def _device_kind() -> str:
    jax = sys.modules.get("jax")  # an encoder of another library does without
    return jax.devices()[0].device_kind if jax else "cpu"


def to_metadata(environments: Iterable[str]) -> dict[bytes, bytes]:
    """Metadata of a part that was measured in some environments."""
    return {KEY.encode(): json.dumps(sorted(set(environments))).encode()}


def of_schema(schema: pa.Schema) -> list[str]:
    """The environments that a part was measured in."""
    return json.loads((schema.metadata or {}).get(KEY.encode(), b"[]"))


def describe_mixture(environments: Sequence[str]) -> str:
    """What some environments differ in: `jax 0.10.0 or 0.10.1`; "" if in nothing."""
    parts = [dict(item.split(" ", 1) for item in e.split(", ")) for e in environments]
    names = sorted({name for part in parts for name in part})
    name_to_values = {n: sorted({part.get(n, "none") for part in parts}) for n in names}
    mixed = {n: values for n, values in name_to_values.items() if len(values) > 1}
    return ", ".join(f"{name} {' or '.join(values)}" for name, values in mixed.items())
