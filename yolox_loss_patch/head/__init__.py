"""What goes into YOLOX: which host it is, label assignment, the loss stage, and the patch that puts it there.

Uses specs and losses; exp, train and doctor use it.
"""
