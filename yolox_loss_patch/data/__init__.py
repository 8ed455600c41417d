"""Annotation files and images: what is wrong with them, what they hold, and the loader that a training reads.

This room uses no other; specs, exp, train and doctor use it.
"""
