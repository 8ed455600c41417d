"""A bootstrap over images that keeps multiplicity: detections matched once per run, AP of every resample.

`judging` uses it; it uses nothing of the room.
"""
