"""The losses: one pure, element-wise function a loss, one family a file.

Only torch is imported here. ``terms`` turns a function into the module that the loss stage calls.
"""
