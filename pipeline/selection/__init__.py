"""Stage 2, select: one decision on every pair, from its scores and the recipe.

In: the tables that `score` wrote. Out: a table of decisions for each lot (kept, or
dropped with a reason) and the ledger that counts them. No model runs here.

Begin with `stage.py`, which lists the steps in their order. A step on single pairs is
in `rights`, `rules`, `language`, `alignment`, `safety` or `balance`; `duplicates/`
compares images with one another, `retrieval/` compares them with curated seeds, and
`search/` holds the indexes that both use. `lot_decisions.py` is the value between the
steps.
"""
