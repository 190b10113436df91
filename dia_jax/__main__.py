"""`python -m dia_jax` is the command line, `dia-jax`; see `dia_jax.cli`."""

from dia_jax.cli import main

if __name__ == "__main__":
    main()
