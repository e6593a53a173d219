"""The terms of the loss, one file each.

Begin with `term.py`, which says what a term declares, then `koleo.py`, the shortest.
`declared.py` lists the terms of a configuration.
"""
