"""The report: one page that shows what a run found, for a person to look at."""

from potstill.report.label_page import write_label_page
from potstill.report.page import write

__all__ = ["write", "write_label_page"]
