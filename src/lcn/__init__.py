"""Lifelong cross-domain click prediction: LCN (CRP + LAP) and the systems it is compared with.

Whatever a command does is one function of `lcn.api`; importing this package loads nothing else.
"""

__version__ = "0.1.0"
