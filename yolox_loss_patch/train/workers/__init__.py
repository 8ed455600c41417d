"""The processes that train together: where each stands, whether they agree, and that they end together.

YOLOX's own launch needs CUDA. When one of its workers dies, the others wait for it, or end without a message.
"""
