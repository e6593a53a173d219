"""A loss term of your own, and a recipe that uses it.

    python -m trainer.train --config examples/loss_term.py --data RUN/tfrecords \
        --workdir DIR --set data.tokenizer=RUN/tokenizer.model

A term is a frozen dataclass of settings that says what it reads and what its gradient
reaches. A recipe names it `MODULE:CLASS`, with its weight and its settings.
"""

import dataclasses

import jax.numpy as jnp

from recipes.settings import Settings
from recipes.validation import require_positive
from trainer.config import AddedTerm, TrainConfig
from trainer.configs import demo
from trainer.models.layers import l2_normalize
from trainer.step.terms.term import BatchTerm, Value, View, WholeBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniformity(Settings, BatchTerm):
    """ln of the mean of exp(-t |x - y|^2) over the images of a batch, with CLS 1.

    Source: Wang and Isola 2020, arXiv:2005.10242, with each image beside itself too.
    """

    t: float = 2.0

    name = "uniformity"  # of the metric
    views = frozenset({View.WHOLE})
    reach = frozenset({"vision"})  # groups of parameters with a gradient

    def __post_init__(self):
        require_positive(self, "t")

    def value(self, batch: WholeBatch) -> Value:
        """In nats; 0 if all images are alike."""
        x = l2_normalize(batch.features[View.WHOLE][:, 0])
        squares = 2 - 2 * x @ x.T
        return Value(jnp.log(jnp.exp(-self.t * squares).mean()))

    def chance(self, n_pairs: int) -> float:
        """The value for features that tell nothing apart."""
        return 0.0


def get_config() -> TrainConfig:
    """The demo's model, whose images are also spread."""
    term = AddedTerm(
        term="examples.loss_term:Uniformity", weight=0.1, settings={"t": 2.0}
    )
    return dataclasses.replace(demo.get_config(), terms=(term,))
