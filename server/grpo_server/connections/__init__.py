"""What a connection may hold, and for how long, before and after a request reaches the application.

Every limit here is met without a key, so it stands in front of the gate: bytes and number of headers, time for a head, time
for a reader of an answer, number of connections. Bodies are the application's (`middleware.body_limit`).
"""

from grpo_server.connections.files import allow_connections
from grpo_server.connections.settings import server_settings

__all__ = ["allow_connections", "server_settings"]
