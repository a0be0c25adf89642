"""The report: one self-contained HTML page about one or more runs."""

from gradvac.experiment.report.page import write_report

__all__ = ["write_report"]
