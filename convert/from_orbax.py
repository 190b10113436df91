"""Our Orbax directory (or any other layout) -> a PyTorch checkpoint, Dia or DAC. Knows only the library's converter.

    python convert/from_orbax.py dia-orbax/ dia-transformers/ --layout transformers --verify
    python convert/from_orbax.py dia-orbax/ dia-reference/ --layout reference --verify

Layouts: transformers (which `transformers` itself loads), reference (safetensors) and reference-pth for Dia, descript
(`weights.pth`) for DAC.
"""

import sys

from dia_jax.cli import run

if __name__ == "__main__":
    sys.exit(run(["convert", "--layout", "transformers", *sys.argv[1:]]))
