"""GRPO training against a reference that a server holds; the `grpo-train` command.

Talks to the server through `grpo_client` and knows nothing else of it. The parts are plain modules:

    config      what a run is told                  rollout     sample groups of completions
    tasks       problems and verifiable rewards     policy      their log-probs, with gradient
    models      load a policy                       reference   the same from the server, over HTTP
    losses      the objective, as functions         orthograd   any optimizer, orthogonal gradients
    objective   the same, as configured             evaluation  held-out questions
    sampling    who samples: policy or server       watch       softmax collapse, at intervals
    step, loop  one step, a whole run               checkpoint  stop and go on, bit for bit
    metrics, progress, plots                        what one sees of it
"""
