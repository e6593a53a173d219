"""A CLS token against the texts of the batch: InfoNCE, or the sigmoid loss.

Source: TIPS, arXiv:2410.16512, section 3, with one term for each of two tokens;
Radford et al. 2021, arXiv:2103.00020; Zhai et al. 2023, arXiv:2303.15343.
"""

import dataclasses
import math
from typing import Any

from trainer.config import (
    ContrastiveLoss,
    ContrastivePair,
    ModelConfig,
    Text,
    TrainConfig,
)
from trainer.step import losses
from trainer.step.terms.term import BatchTerm, Forward, Value, View, WholeBatch


@dataclasses.dataclass(frozen=True)
class Contrastive(BatchTerm):
    """One pair of token and text."""

    pair: ContrastivePair
    loss: ContrastiveLoss
    is_alone: bool = True  # no other pair has this text

    @property
    def name(self) -> str:
        """Names the text, and the token where several are compared with the text."""
        name = f"contrastive_{self.pair.text}"
        return name if self.is_alone else f"{name}_cls{self.pair.token}"

    @property
    def views(self) -> frozenset[View]:
        """The whole view."""
        return frozenset({View.WHOLE})

    @property
    def texts(self) -> frozenset[Text]:
        """The text of the pair."""
        return frozenset({self.pair.text})

    @property
    def reach(self) -> frozenset[str]:
        """Both encoders, and the scalars of the text."""
        text = self.pair.text
        names = {"vision", "text", f"log_temperature_{text}"}
        has_bias = self.loss is ContrastiveLoss.SIGMOID
        return frozenset(names | {f"bias_{text}"} if has_bias else names)

    def value(self, batch: WholeBatch) -> Value:
        """The loss with the temperature, and the bias, of the text."""
        text = self.pair.text
        temperature = batch.model.temperatures()[text]
        features = (
            batch.features[View.WHOLE][:, self.pair.token - 1],
            batch.features[text],
        )
        options: Any = {"mesh": batch.mesh, "n_rows_per_chunk": batch.n_rows_per_chunk}
        if self.loss is ContrastiveLoss.SIGMOID:
            bias = (batch.model.biases() or {})[text]
            nats = losses.sigmoid(*features, temperature, bias, **options)
        else:
            nats = losses.info_nce(*features, temperature, **options)
        return Value(nats, {f"temperature_{text}": temperature})

    def chance(self, n_pairs: int) -> float:
        """ln b for InfoNCE, with b pairs.

        That of the sigmoid loss depends on its bias: at the best one, which gives every
        pair the probability 1/b, it is ln b + (b - 1) ln(b / (b - 1)), nearly 1 more.
        """
        chance = math.log(n_pairs)
        if self.loss is ContrastiveLoss.SIGMOID:
            chance -= (n_pairs - 1) * math.log1p(-1 / n_pairs)
        return chance

    def flops(self, config: TrainConfig, taught: ModelConfig) -> Forward:
        """The logits of an image with all texts."""
        return Forward(2 * config.data.batch_size * config.model.vision.width, 0)
