"""Exit 0 when the server in this container is ready to score, 1 when it is not. For HEALTHCHECK: the image has no curl."""

import http.client
import os
import sys


def ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if ready(int(os.environ.get("GRPO_SERVER_PORT", "8000"))) else 1)
