"""Exit 0 when the server in this container is ready to score, 1 when it is not. For HEALTHCHECK: the image has no curl."""

import http.client
import os
import ssl
import sys


def connection(port: int) -> http.client.HTTPConnection:
    """To this container's own server, whose certificate need not name 127.0.0.1; with mutual TLS it is shown its own."""
    cert = os.environ.get("GRPO_SERVER_TLS_CERT")
    if not cert:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if os.environ.get("GRPO_SERVER_TLS_CLIENT_CA"):
        context.load_cert_chain(cert, os.environ.get("GRPO_SERVER_TLS_KEY"))
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=4, context=context)


def ready(port: int) -> bool:
    asking = connection(port)
    try:
        asking.request("GET", "/readyz")
        return asking.getresponse().status == 200
    except OSError:
        return False
    finally:
        asking.close()


if __name__ == "__main__":
    sys.exit(0 if ready(int(os.environ.get("GRPO_SERVER_PORT", "8000"))) else 1)
