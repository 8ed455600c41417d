"""Experiments: the mix-in for experiment files, overrides from the command line, loading, the device.

Uses head, specs and data; train, sweep and doctor use it.
"""
