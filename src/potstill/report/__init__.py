"""The report: one page that shows what a run found, for a person to look at."""

from potstill.report.page import write

__all__ = ["write"]
