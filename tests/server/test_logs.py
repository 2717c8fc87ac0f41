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


QUIET = """
import logging
from server.logs import set_up_logging
set_up_logging("error")
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
logging.getLogger("uvicorn.error").error("shown")
"""


def test_what_uvicorn_says_of_bad_requests_is_no_error():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)

    (line,) = done.stderr.splitlines()
    assert line.endswith("ERROR uvicorn.error: shown")


def test_json_access_lines_stand_alone_whatever_the_level():
    """Run in a process of its own, because logging is set up once per process."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)

    first, second = done.stderr.splitlines()
    assert first == '{"a": 1}'
    assert second.endswith("WARNING server.serve: shown")
