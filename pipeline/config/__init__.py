"""What a recipe of the pipeline says, and the fingerprints of it.

In: values that a recipe states. Out: frozen dataclasses, checked when they are made,
and short hashes of the parts that determine a table. Nothing here reads a file of a
run. Begin with `curation.CurationConfig`.
"""
