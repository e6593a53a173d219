"""The report of a run, and the commands `show` and `find`.

In: a run folder whose pairs are decided, and optionally another run to compare with.
Out: one HTML page, or lines of text about single pairs. Nothing is decided here. Begin
with `page.py` for the page, `show_pair.py` for a pair, `find_pairs.py` for a search.
"""
