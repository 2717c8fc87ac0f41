"""`python -m server.probe /health`: asks the server of this container; its HEALTHCHECK runs this.

The address is the one that the server keeps in its --address-file, whatever flags, variables or a
file made it. Imports the standard library only, as it runs every few seconds.
"""

import http.client
import os
import ssl
import sys
from pathlib import Path
from urllib.parse import urlsplit

_TIMEOUT_S = 4.0
_DEFAULT_PORT = 8000


def main(path: str) -> int:
    """Return 0 if the server answers with status 200; else say what it did and return 1."""
    url = _address()
    try:
        status = _status(url, path)
    except (OSError, http.client.HTTPException) as error:
        print(f"{url}{path}: {error}")
        return 1
    print(f"{url}{path}: status {status}")
    return 0 if status == http.client.OK else 1


def _address() -> str:
    try:
        return Path(os.environ["ADADECODE_ADDRESS_FILE"]).read_text(encoding="utf-8").strip()
    except (KeyError, OSError):  # it does not listen yet, or could not write the file
        port = os.environ.get("ADADECODE_PORT", "")
        return f"http://127.0.0.1:{port if port.isdigit() else _DEFAULT_PORT}"


def _status(url: str, path: str) -> int:
    """Ask without a proxy, and whatever names the certificate is for: this is the same machine."""
    address = urlsplit(url)
    host, port = address.hostname or "", address.port
    if address.scheme == "https":
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=_TIMEOUT_S, context=trusting
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
