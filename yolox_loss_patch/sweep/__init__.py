"""Many trainings: the plan, the order in which they run, and the places where they run (this machine, Slurm).

Uses runs, compare and exp; a training is a process of its own.
"""
