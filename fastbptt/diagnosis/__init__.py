"""What becomes of a gradient: the verdict in words, and the figures behind it."""

from .report import Diagnosis, diagnose
from .sources import OneHot

__all__ = ["Diagnosis", "OneHot", "diagnose"]
