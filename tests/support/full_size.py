"""How much a test proves by sheer number: a part that meets every case, or all of it.

ADADECODE_FULL_SIZE=1 asks for all of it (`make full`).
"""

import os

FULL_SIZE = os.environ.get("ADADECODE_FULL_SIZE") == "1"
