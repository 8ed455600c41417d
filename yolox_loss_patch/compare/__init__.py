"""Runs held against each other: results, statistics, detections, tables, figures, the page.

Uses runs and specs; sweep and doctor use it.
"""
