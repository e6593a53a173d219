"""An evaluation task of your own.

    python -m trainer.evaluate --checkpoint MODEL --data 'COCO/*.tar' \
        --task examples.evaluation_task:SPREAD

A task is a function of an `Evaluation` (encoder, data, settings) that returns nested
numbers. `trainer.evaluate` prints them. A training run logs them if its recipe has
`evaluations={"examples.evaluation_task:SPREAD": PATH}` in its `RunConfig`.
"""

from trainer.evals.scores import features
from trainer.evals.task_inputs import Evaluation, Task


def spread(run: Evaluation) -> dict:
    """Mean cosine of different images, by CLS token: near 1 is a collapsed encoder.

    Raises SampleError, with one line for the user, without an image.
    """
    cls, samples = run.embed(run.source.not_of_training())
    n = len(samples)
    token_to_cosine = {}
    for token, vectors in features.by_token(cls).items():
        vectors = features.normalize(vectors)
        n_pairs = max(n * (n - 1), 1)
        cosine = ((vectors @ vectors.T).sum() - n) / n_pairs
        token_to_cosine[token] = {"mean_cosine": float(cosine)}
    return {"n_images": n, **token_to_cosine}


SPREAD = Task(spread)
