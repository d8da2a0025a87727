"""Lifelong cross-domain click prediction: LCN (CRP + LAP) and the systems it is compared with.

What the commands about data, training and measurement do is one function of `lcn.api` each;
experiments and serving stand above it, in packages of their own. Importing this one loads nothing
else.
"""

__version__ = "0.1.0"
