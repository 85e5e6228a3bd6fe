"""
The endurance suite: damaged files, hostile servers and random command lines against the rule that only documented
errors and right results come out, without a crash, a hang or a grey frame in silence. `swinbert doctor --self-test`.
"""

from swinbert.endurance.self_test import SelfTest, self_test, shown

__all__ = ["SelfTest", "self_test", "shown"]
