"""One self-contained HTML page about any list of run folders; works without torch."""

from lvmmed.report.page import build_report, headline

__all__ = ["build_report", "headline"]
