"""Frozen models of the pipeline: encoders, captioners, descriptors, languages.

In: a checkpoint folder in Hugging Face form, images and texts. Out: embeddings,
captions, vectors and language codes. No module imports Beam.
Begin with `interfaces`, then `encoders`.
"""
