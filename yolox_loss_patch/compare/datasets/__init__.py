"""``compare --by data``: runs on several data sets, each compared by itself, in one table with a verdict over all.

It uses the whole room; only the command line uses it.
"""
