"""Turns the certificates of the settings into an `SSLContext`, or refuses them at start-up."""

import ssl

from server.settings import ServerSettings


class TlsError(Exception):
    """The certificates cannot be used; the message says which."""


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """Return the context that wraps connections; None without a certificate.

    Raises:
        TlsError: certificate, key or authorities cannot be used.
    """
    certificate = settings.ssl_certfile
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # An empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certificate, settings.ssl_keyfile, password="")
    except (OSError, ssl.SSLError) as error:
        needed = "a certificate in PEM form is needed, with its key there or in --ssl-keyfile"
        raise TlsError(f"--ssl-certfile {certificate}: {_reason(error)}; {needed}") from None
    if settings.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(settings.ssl_ca_certs)
        except (OSError, ssl.SSLError) as error:
            raise TlsError(f"--ssl-ca-certs {settings.ssl_ca_certs}: {_reason(error)}") from None
    context.verify_mode = ssl.VerifyMode(settings.ssl_cert_reqs)
    return context


def _reason(error: OSError) -> str:
    return (getattr(error, "reason", None) or error.strerror or str(error)).lower()
