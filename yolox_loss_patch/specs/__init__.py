"""What a user writes for a term, turned into checked plain data and then into a loss module.

Knobs, catalogue, registry, MMDetection's names, config. Uses losses and data.
"""
