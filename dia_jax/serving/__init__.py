"""A server for Dia: OpenAI's speech API, dialogues, voices, a page to try it. Uses the core by its public names.

`app` has the routes and `schema` what goes in and out, `gate` stands before them, `admission` counts who may come in,
`answering` sends what `speaking` makes of a request, in a format of `encoding`, `voices` knows the voices by name, and
`server` runs it all until it is told to stop. `replicas` wraps the same application for Ray Serve.
"""

from dia_jax.serving.app import create_app
from dia_jax.serving.service import Service
from dia_jax.serving.settings import Settings

__all__ = ["Service", "Settings", "create_app"]
