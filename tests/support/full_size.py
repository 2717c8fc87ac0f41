"""Whether tests run all of their many inputs, or a part that covers every case.

ADADECODE_FULL_SIZE=1 asks for all of them (`make full`).
"""

import os

FULL_SIZE = os.environ.get("ADADECODE_FULL_SIZE") == "1"
