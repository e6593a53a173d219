"""The check of the report's flags."""

from pipeline.report import encoder_pictures
from pipeline.report.run_comparison import OtherRun


def check(against: str, pictures: str) -> None:
    """Raises ValueError on a run to compare with, or pictures, that are not there."""
    if against:
        OtherRun.open(against)
    if pictures and not encoder_pictures.find(pictures):
        raise ValueError(f"--pictures {pictures}: expected PNGs of trainer.pictures")
