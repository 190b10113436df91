"""PyTorch checkpoint -> our Orbax directory, Dia or DAC. Knows only the library's converter.

    python convert/to_orbax.py Dia-1.6B-0626/ dia-orbax/ --verify
    python convert/to_orbax.py weights.pth dia-orbax/dac/ --verify

The first path is a directory or file in the reference's layout (safetensors, .pth, .bin), that of transformers (sharded
or not) or descript's `weights.pth`; the second a new directory.
"""

import sys

from dia_jax.cli import run

if __name__ == "__main__":
    sys.exit(run(["convert", "--layout", "orbax", *sys.argv[1:]]))
