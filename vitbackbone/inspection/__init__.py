"""The costs of a backbone, its agreement with its upstream, descriptions of it, and pictures of what it sees."""

from vitbackbone.inspection.checking import Check, check
from vitbackbone.inspection.costs import costs
from vitbackbone.inspection.describe import info, info_record, models_rows, models_table
from vitbackbone.inspection.forward_steps import trace, trace_rows
from vitbackbone.inspection.pictures import show

__all__ = [
    "Check",
    "check",
    "costs",
    "info",
    "info_record",
    "models_rows",
    "models_table",
    "show",
    "trace",
    "trace_rows",
]
