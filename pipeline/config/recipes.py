"""Recipes of the pipeline as files."""

from pipeline.config.curation import CurationConfig
from recipes import recipe_file

FOLDER = "curation_configs"  # of the recipes that come with the project


def load_config(path: str) -> CurationConfig:
    """Returns the configuration that a recipe's `get_config()` makes.

    `curation_configs/NAME.py` is found where the package is installed, too.

    Raises:
      ValueError: one line that says what is wrong with the file, and where.
    """
    return recipe_file.load(path, CurationConfig, FOLDER)
