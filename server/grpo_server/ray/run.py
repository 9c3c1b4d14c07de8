"""`grpo-server --ray`: replicas on the cluster of RAY_ADDRESS, on one that runs on this machine, or on one that is started here
for as long as the command runs."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from grpo_server.config import ServerConfig
from grpo_server.ray.application import application
from grpo_server.ray.proxy import CALLBACK, VARIABLE

logger = logging.getLogger(__name__)

APPLICATION = "grpo-server"


def serve_on_ray(config: ServerConfig) -> int:
    """Until a signal; then accepted requests are finished. Returns the exit status: 1 when the replicas do not come up."""
    os.environ.setdefault(VARIABLE, CALLBACK)
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    ray.init(namespace="grpo-server", log_to_driver=config.log_level == "debug", configure_logging=False)
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        serve.start(http_options=HTTPOptions(host=config.host, port=config.port))
        try:
            serve.run(application(config), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            logger.error("the replicas do not come up: %s", error)
            return 1
        logger.info("http://%s:%d takes requests for %d replicas", config.host, config.port, config.replicas)
        ended.wait()
        logger.info("told to end: the replicas finish what they accepted")
        serve.delete(APPLICATION)
    finally:
        serve.shutdown()
        ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0
