"""`make bench`: our gateway beside its peers, on one core each, with the same work in the same run.

Tooling: nothing of the product imports it. docs/decisions/0003-bench.md says what is measured, how, and why ratios.
"""
