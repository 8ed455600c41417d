"""Training and evaluation: the loop, and small parts that each own one concern.

Uses exp, head, data and runs; only doctor and the command line use it.
"""
