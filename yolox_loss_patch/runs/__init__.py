"""What a training leaves: run.json, metrics.csv, predictions, checkpoints; of plain YOLOX too.

Written by train, read by everybody else. Uses specs only.
"""
