"""The tasks on vectors of whole images: classification and retrieval.

Each returns nested numbers, shares in [0, 1], for CLS 1, CLS 2 and their mean: the
papers do not say which of these their tables report.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from trainer.evals.scores import (
    features,
    fine_grained,
    knn,
    linear_classification,
    retrieval,
    zero_shot_classification,
)
from trainer.evals.sets import label_names
from trainer.evals.sets.readers import Source
from trainer.evals.sets.samples import Sample, SampleError
from trainer.evals.task_inputs import Evaluation, Task
from trainer.split_names import INDEX, TEST, TRAIN

Vectors = Float[np.ndarray, "n d"]
Labels = Int[np.ndarray, "n"]


def knn_classification(run: Evaluation) -> dict:
    """Classifies test images by votes of their nearest training images."""
    return _train_and_test(run, knn.accuracies)


def linear(run: Evaluation) -> dict:
    """Classifies test images by logistic regression on training images."""
    seed = run.settings.rng_seed
    measure = functools.partial(linear_classification.accuracy, rng_seed=seed)
    return _train_and_test(run, measure)


def zero_shot(run: Evaluation) -> dict:
    """Classifies images by the names of all classes of the set.

    Without a list of classes, they are the labels that occur.
    """
    cls, samples = run.embed(
        run.source.not_of_training("label"), missing="no images with a label"
    )
    labels, names = class_candidates(run.source, [str(one.label) for one in samples])
    sentences = zero_shot_classification.prompts(names, run.settings.prompts)
    texts = run.embed_texts(sentences).reshape(len(names), -1, cls.shape[-1])
    classes = zero_shot_classification.class_features(texts)
    numbers = _label_numbers(labels, names)
    accuracies = {
        token: {"accuracy": zero_shot_classification.accuracy(images, classes, numbers)}
        for token, images in features.by_token(cls).items()
    }
    return {"n_images": len(samples), "n_classes": len(names), **accuracies}


def class_candidates(
    source: Source, labels: Sequence[str]
) -> tuple[list[str], Sequence[str]]:
    """Returns labels, and the names of all classes, as they are written in sentences.

    Raises SampleError on a class that is no name, and on a label that is no class.
    """
    spoken = [label_names.spoken_name(label) for label in labels]
    listed = [label_names.spoken_name(name) for name in source.classes]
    names = list(dict.fromkeys(listed)) or _class_names(spoken)
    if len(names) < len(listed):
        source.account.warn(f"{len(listed) - len(names)} names of classes stand twice")
    if unknown := sorted(set(spoken) - set(names)):
        raise SampleError(
            f"{source.place}: label {unknown[0][:60]!r}: expected one of the"
            f" {len(names)} names of classes"
        )
    unnamed = [] if source.are_classes_told else label_names.find_unnamed(names)
    if unnamed:
        raise SampleError(
            f"{source.place}: class {unnamed[0]!r} is a number or an id"
            f" ({len(unnamed)} of {len(names)}), expected a name: give a JSON list, or"
            ' an object such as {"n01440764": "tench"}, as classes.json at the data or'
            " by --set classes=FILE"
        )
    return spoken, names


def image_text_retrieval(run: Evaluation) -> dict:
    """Scores every granularity by itself: short captions match many images."""
    cls, samples = run.embed(
        run.source.not_of_training("captions"),
        missing="no captions, expected some in KEY.json or KEY.txt, or in a column",
    )
    granularities = sorted({name for sample in samples for name in sample.captions})
    return {
        name: _retrieval_of(run, cls, [one.captions.get(name, ()) for one in samples])
        for name in granularities
    }


def fine_grained_retrieval(run: Evaluation) -> dict:
    """Returns recall@1 in each domain, and the mean over domains."""
    cls, samples = run.embed(_expect_labels(run.source.queries_and_index()))
    domains = sorted({_domain(sample) for sample in samples})
    found = {domain: _fine_grained_of(domain, cls, samples) for domain in domains}
    tokens = features.by_token(cls[:1])
    means = {
        token: {
            "recall@1": float(np.mean([d[token]["recall@1"] for d in found.values()]))
        }
        for token in tokens
    }
    return {"n_domains": len(domains), **means, "domains": found}


def _train_and_test(
    run: Evaluation, measure: Callable[[Vectors, Labels, Vectors, Labels], dict]
) -> dict:
    """Measures test images against training images."""
    train_cls, train = run.embed(
        _expect_labels(run.source.of_split(TRAIN)), "training images"
    )
    test_cls, test = run.embed(_expect_labels(run.source.of_split(TEST)), "test images")
    names = _class_names([one.label for one in train])
    _check_known(test, names)
    labels = [
        _label_numbers([one.label for one in part], names) for part in (train, test)
    ]
    by_token = zip(
        features.by_token(train_cls).items(),
        features.by_token(test_cls).values(),
        strict=True,
    )
    found = {
        token: measure(train_images, labels[0], test_images, labels[1])
        for (token, train_images), test_images in by_token
    }
    sizes = {"n_images": len(test), "n_training_images": len(train)}
    return {**sizes, "n_classes": len(names), **found}


def _retrieval_of(
    run: Evaluation,
    cls: Float[np.ndarray, "n 2 d"],
    captions: Sequence[tuple[str, ...]],
) -> dict:
    """Scores the images that have captions."""
    rows = [row for row, texts in enumerate(captions) if texts]
    texts = [text for row in rows for text in captions[row]]
    counts = [len(captions[row]) for row in rows]
    text_to_image = np.repeat(np.arange(len(rows)), counts)
    text_features = run.embed_texts(texts)
    recalls = {
        token: retrieval.recalls(images, text_features, text_to_image)
        for token, images in features.by_token(cls[rows]).items()
    }
    return {"n_images": len(rows), "n_texts": len(texts), **recalls}


def _fine_grained_of(
    domain: str, cls: Float[np.ndarray, "n 2 d"], samples: Sequence[Sample]
) -> dict:
    """If no images are to be searched, each query searches all the others."""
    is_own = np.array([_domain(sample) == domain for sample in samples])
    is_index = np.array([sample.split == INDEX for sample in samples])
    labels = [sample.label for sample in samples]
    numbers = _label_numbers(labels, sorted(set(labels), key=str))
    queries, index = is_own & ~is_index, is_own & is_index
    if not queries.any():
        raise SampleError(f"{domain}: no queries, expected a split `query` or `test`")
    found = {}
    for token, images in features.by_token(cls).items():
        own = images[queries], numbers[queries]
        if index.any():
            recall = fine_grained.recall_at_1(*own, images[index], numbers[index])
        else:
            recall = fine_grained.recall_at_1_of_others(*own)
        found[token] = {"recall@1": recall}
    return {"n_images": int(queries.sum()), "n_index": int(index.sum()), **found}


def _domain(sample: Sample) -> str:
    return sample.domain or "all"


def _expect_labels(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Yields the samples; raises SampleError on the first without a label."""
    for sample in samples:
        if sample.label is None:
            raise SampleError(
                f"{sample.name}: no label, expected a text or a whole number in a"
                " column or field `label`, or a folder of a class"
            )
        yield sample


def _check_known(samples: Sequence[Sample], names: Sequence[str]) -> None:
    known = set(names)
    for sample in samples:
        if sample.label not in known:
            raise SampleError(
                f"{sample.name}: label {sample.label!r}: expected one that training"
                f" images have, {len(names)} in all"
            )


def _class_names(labels: Sequence[Any]) -> list[str]:
    names = sorted(set(labels))
    if len(names) < 2:
        raise SampleError(f"{len(names)} different labels, expected at least 2")
    return names


def _label_numbers(labels: Sequence[Any], names: Sequence[Any]) -> Labels:
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[label] for label in labels])


TASKS = {
    "zero_shot_classification": Task(zero_shot, reads_text=True),
    "retrieval": Task(image_text_retrieval, reads_text=True),
    "knn_classification": Task(knn_classification, is_trained=True),
    "linear_classification": Task(linear, is_trained=True),
    "fine_grained_retrieval": Task(fine_grained_retrieval),
}
