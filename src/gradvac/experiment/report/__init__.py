"""The report: one self-contained HTML page about one or more runs."""

from gradvac.experiment.report.page import write_report
from gradvac.experiment.report.watch import watch_report

__all__ = ["watch_report", "write_report"]
