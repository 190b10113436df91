"""The command line, `dia-jax`: speaking, voices, serving, checkpoints and training, in the commands below.

Turns arguments into a command, runs it, and turns the library's errors into one line and an exit code: 0 done,
1 failed, 2 unusable input, 130 interrupted. The commands themselves are in the modules of this package. No other
module touches JAX's configuration (the cache of compiled programs).
"""

import contextlib
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import tyro

from dia_jax.cli.checkpoints import Convert, Info, MakeUntrained
from dia_jax.cli.common import say
from dia_jax.cli.generate import Generate
from dia_jax.cli.serve import Serve, Ui
from dia_jax.cli.speak import MakeVoice, Speak
from dia_jax.cli.train import Prepare, Train, TrainCodec
from dia_jax.config import DiaError

DESCRIPTION = """Dia in JAX: scripts with two speakers in, recordings out.

Exit codes: 0 done, 1 failed, 2 unusable input, 130 interrupted.
"""

COMMANDS: dict[str, Any] = {
    "generate": Generate,
    "speak": Speak,
    "voice": MakeVoice,
    "serve": Serve,
    "ui": Ui,
    "convert": Convert,
    "prepare": Prepare,
    "train": Train,
    "train-codec": TrainCodec,
    "info": Info,
    "make-untrained": MakeUntrained,
}


def main() -> None:
    """Entry point of `dia-jax`."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Runs one command.

    Args:
        args: the command line, without the program's name.

    Returns:
        the exit code: 0 done, 1 failed, 2 unusable input, 130 interrupted.

    Raises:
        SystemExit: the arguments do not parse (code 2), or ask for help (code 0).
    """
    try:
        command: Any = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="dia-jax", description=DESCRIPTION, args=args
        )
        _keep_compiled_programs()
        _silence_failed_reads()
        _report_idle_accelerators()
        command.run()
    except DiaError as error:
        _report(str(error))
        return 2
    except KeyboardInterrupt as error:
        kept = f"; {error}" if str(error) else ""
        _report(f"interrupted{kept}.")
        return 130
    except BrokenPipeError:  # whoever read the output, `head` for instance, has enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (or Python complains when it flushes)
        return 1
    except (OSError, MemoryError, RuntimeError) as error:
        # A full disk, or out of memory on the device: not the input's fault, and no bug that needs a traceback.
        _report(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _report(message: str) -> None:
    """Prints an error on standard error in one line; XLA's and numpy's messages can have several."""
    line = re.sub(r"\s*\n\s*", " ", message.strip())
    with contextlib.suppress(OSError):  # the exit code says it too
        say(f"dia-jax: {line}", error=True)


def _silence_failed_reads() -> None:
    """When Orbax fails to read an array, callbacks may find its event loop closed. The failure itself is reported."""
    default = sys.unraisablehook

    def hook(unraisable) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            default(unraisable)

    sys.unraisablehook = hook


def _report_idle_accelerators() -> None:
    """Prints that warning as a sentence of its own. The default is to show the line of Python that it came from."""
    from dia_jax.devices import AcceleratorWarning

    default = warnings.showwarning

    def show(message, category, *place, **options) -> None:
        if issubclass(category, AcceleratorWarning):
            _report(str(message))
        else:
            default(message, category, *place, **options)

    warnings.showwarning = show


def _keep_compiled_programs() -> None:
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # pyrefly: ignore[missing-attribute]
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        cache = Path(home) / "dia_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # JAX keeps what took a second; a server needs hundreds of programs that each take less.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
