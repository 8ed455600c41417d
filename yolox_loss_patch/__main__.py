"""``python -m yolox_loss_patch``."""

import sys

from .cli import main

sys.exit(main())
