"""What is checked before a training: doctor, verify, calibrate, the conformance of a loss, and pictures of losses.

May use every other room; only the command line uses it.
"""
