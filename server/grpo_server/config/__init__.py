"""What an operator chooses, and where it is read from: flags, environment and a file.

sources > server > serving, limits, access, swapping, ray > sizes        imports go this way only; `file` stands alone
"""

from grpo_server.config.access import SECRETS
from grpo_server.config.server import ENV_PREFIX, ServerConfig

__all__ = ["ENV_PREFIX", "SECRETS", "ServerConfig"]
