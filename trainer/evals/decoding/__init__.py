"""Decoders on frozen features: linear probes and DPT heads, and how they train.

In: features of training images and their truths. Out: maps for test images. Begin with
`dense_tasks.py`.
"""
