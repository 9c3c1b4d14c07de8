"""The reference-policy service: a FastAPI app over a scheduler over an engine, and the command `grpo-server`.

    routes > scheduler > engine       imports go this way only

Routes translate a request into a `ScoreRequest` and its answer back; the scheduler decides what runs next and what is
refused; the engine owns the model. The command line reads `config`, then `serving` runs `app` around `service`.
"""
