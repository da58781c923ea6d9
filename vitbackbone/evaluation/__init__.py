"""The papers' protocols: a backbone's figures beside the published ones."""

from vitbackbone.evaluation.datasets import FILES as DATASETS
from vitbackbone.evaluation.datasets import LayoutError, find_layout
from vitbackbone.evaluation.protocol import Nothing, Protocol, Score
from vitbackbone.evaluation.protocols import FILES as PROTOCOLS
from vitbackbone.evaluation.protocols import find_protocol, variants
from vitbackbone.evaluation.published import figures
from vitbackbone.evaluation.report import markdown, write_report
from vitbackbone.evaluation.results import Result, Results, read_results
from vitbackbone.evaluation.run import Machine, Run
from vitbackbone.evaluation.runner import evaluate, plan
from vitbackbone.evaluation.safe_pickle import read_pickle

__all__ = [
    "DATASETS",
    "PROTOCOLS",
    "LayoutError",
    "Machine",
    "Nothing",
    "Protocol",
    "Result",
    "Results",
    "Run",
    "Score",
    "evaluate",
    "figures",
    "find_layout",
    "find_protocol",
    "markdown",
    "plan",
    "read_pickle",
    "read_results",
    "variants",
    "write_report",
]
