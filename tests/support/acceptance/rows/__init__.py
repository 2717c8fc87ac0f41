"""All rows of the table, in chapters."""

from acceptance.rows.admission import ADMISSION
from acceptance.rows.faults import FAULTS
from acceptance.rows.http import HTTP
from acceptance.rows.ignored import IGNORED
from acceptance.rows.operation import OPERATION
from acceptance.rows.outputs import OUTPUTS
from acceptance.rows.requests import REQUESTS

ROWS = (*HTTP, *REQUESTS, *ADMISSION, *FAULTS, *OUTPUTS, *OPERATION, *IGNORED)
