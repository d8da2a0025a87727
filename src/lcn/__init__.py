"""Lifelong cross-domain click prediction: LCN (CRP + LAP) and the systems it is compared with."""

__version__ = "0.1.0"
