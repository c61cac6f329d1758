"""What becomes of a gradient: the verdict in words, and the figures behind it."""

from .norms import NormsReport, norms_report
from .report import Diagnosis, diagnose
from .sources import OneHot

__all__ = ["Diagnosis", "NormsReport", "OneHot", "diagnose", "norms_report"]
