"""A process that runs parts of a GPU benchmark that die or hang: gpu_parts.py FILE PART,PART,…"""

import os
import signal
import sys
import time
from pathlib import Path

from benchmarks.gpu.report import Part, Report


def measure(part: Part) -> None:
    """Add one figure, and then do what the part's name says."""
    part.add("seen", 1.0)
    if part.name == "dies":
        os._exit(9)
    if part.name == "hangs":  # like a call that never returns to Python
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(60)


if __name__ == "__main__":
    report = Report.read(Path(sys.argv[1]), time.time() + 60)
    for name in sys.argv[2].split(","):
        if name == "unborn":
            sys.exit(3)
        report.run(name, 2.0, measure)
