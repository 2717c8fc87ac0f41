import subprocess
import sys

CODE = """
import logging
from server.logs import set_up_logging
set_up_logging("warning", has_json_access=True)
logging.getLogger("server.access_log").info('{"a": 1}')
logging.getLogger("server.serve").info("not shown")
logging.getLogger("server.serve").warning("shown")
"""


def test_json_access_lines_stand_alone_whatever_the_level():
    """In a process of its own: logging is set up once per process."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)

    first, second = done.stderr.splitlines()
    assert first == '{"a": 1}'
    assert second.endswith("WARNING server.serve: shown")
