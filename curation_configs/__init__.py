"""Recipes for the pipeline; begin with `demo`, or with `own_photos` for your data."""
