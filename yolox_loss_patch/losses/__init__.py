"""The formulas: one family per file, one pure function per loss, modules on top.

Tensors in, tensors out. This room imports torch only; every other room may use it.
"""
