"""Puts the deployments together, from the server's own settings."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from grpo_server.config import SECRETS, ServerConfig
from grpo_server.ray.references import References
from grpo_server.ray.replica import Replica

# Requests are queued, and refused, by the server in each replica, in tokens; not by Ray, which would count them.
MANY = 100_000
# A replica that is told to end has this long beyond --drain-timeout, for slow clients to read their answers.
SECONDS_TO_FLUSH = 5.0
# A trainer is silent while it samples: replicas that it will need again are kept for so long.
SECONDS_WITHOUT_QUEUE = 900.0


def app(args: dict[str, Any]) -> Application:
    """What `serve run` and `serve deploy` build. args: the server's settings by their names in a file; what is not among them
    comes from the environment (GRPO_SERVER_*) of the process that builds it, and keys from that of each replica."""
    return application(ServerConfig(**{**args, "ray": True}))


def application(config: ServerConfig) -> Application:
    """The deployments of a server with these settings."""
    settings = config.model_dump(mode="json", exclude={*SECRETS, "config"})
    references = serve.deployment(
        References, name="references", num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=MANY
    )
    options: dict[str, Any] = {
        "name": "server",
        "max_ongoing_requests": MANY,
        "ray_actor_options": {"num_cpus": config.replica_cpus, "num_gpus": config.replica_gpus},
        "graceful_shutdown_timeout_s": config.drain_timeout + SECONDS_TO_FLUSH,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5.0,
        "request_router_config": RequestRouterConfig(request_router_class="grpo_server.ray.router:PromptRouter"),
    }
    if config.max_replicas is None:
        options["num_replicas"] = config.replicas
    else:
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=config.replicas,
            initial_replicas=config.replicas,
            max_replicas=config.max_replicas,
            upscale_delay_s=10.0,
            downscale_delay_s=SECONDS_WITHOUT_QUEUE,
            policy=AutoscalingPolicy(
                policy_function="grpo_server.ray.scaling:QueuedTokens",
                policy_kwargs={"tokens_per_replica": config.tokens_per_replica},
            ),
        )
    return serve.deployment(Replica, **options).bind(settings, references.bind(settings))
