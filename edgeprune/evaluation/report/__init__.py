"""The result of an evaluation as one page that needs nothing else: no network, no font, no script from outside."""

from edgeprune.evaluation.report.page import report_html as report_html
from edgeprune.evaluation.report.page import write_report as write_report
