"""The papers' protocols: a backbone's figures beside the published ones."""

from vitbackbone.evaluation.protocol import Nothing, Protocol, Score
from vitbackbone.evaluation.run import Machine, Run

__all__ = ["Machine", "Nothing", "Protocol", "Run", "Score"]
