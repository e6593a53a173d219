"""A generator and a picture that it drew."""

import numpy as np
import pytest

from pipeline.demo_web import drawn_pair
from pipeline.demo_web.drawn_pair import Picture


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def picture(rng) -> Picture:
    return drawn_pair.sample_picture(rng)
