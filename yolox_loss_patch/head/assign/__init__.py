"""Label assignment (SimOTA): which anchor learns which ground-truth box.

`host_assign` asks the host's own assigner; `fast_assign` gives the same answer in a fraction of the time and memory.
"""

from .fast import fast_assign
from .host import host_assign
from .proof import AssignmentProof, is_accelerator
from .rule import RULE_0_3_0, RULE_MAIN, Assignment, Rule

__all__ = [
    "RULE_0_3_0",
    "RULE_MAIN",
    "Assignment",
    "AssignmentProof",
    "Rule",
    "fast_assign",
    "host_assign",
    "is_accelerator",
]
