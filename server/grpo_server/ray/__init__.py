"""Replicas on a Ray cluster, each a whole server with its engine and its scheduler. The one package that imports Ray (extra
`ray`).

    run, application > replica, references > router, scaling, proxy        imports go this way only

`grpo-server --ray` starts it here; `serve run grpo_server.ray:app model=demo replicas=2`, or a file as in deploy/ray, on a
cluster that runs.
"""

from grpo_server.ray.application import app

__all__ = ["app"]
