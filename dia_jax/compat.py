"""What the oldest versions of the libraries lack (`tests/oldest.txt`). Nothing else in dia_jax asks for a version."""

from typing import Any

from flax import nnx

# Flax 0.11 has no `nnx.List`, and takes a plain list of modules for what it is; from 0.12 on, a plain list is refused.
ModuleList: Any = getattr(nnx, "List", list)
