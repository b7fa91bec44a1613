"""The front's healthcheck: exit 0 if it answers every task, else 1 with the reason. Takes the HTTP port."""

import os
import ssl
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 8


def reason(port: str) -> str | None:
    """Return why the front is not healthy, or None."""
    scheme = "https" if os.environ.get("ONETRUNK_TLS_CERT") else "http"
    # This asks its own container, by a name that is in no certificate.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # No proxy, whatever the environment says.
    https = urllib.request.HTTPSHandler(context=context)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)
    try:
        with opener.open(f"{scheme}://127.0.0.1:{port}/healthz", timeout=TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        return f"{error.code}: {error.read(500).decode(errors='replace')}"
    except urllib.error.URLError as error:  # no connection, or no TLS
        return str(error.reason)
    except OSError as error:
        # A front that wants a client's certificate hangs up after the handshake, and this has none to show.
        return None if os.environ.get("ONETRUNK_TLS_CLIENT_CA") else str(error)


if __name__ == "__main__":
    if found := reason(sys.argv[1]):
        sys.exit(f"not healthy: {found}")
