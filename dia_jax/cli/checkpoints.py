"""Commands on checkpoints: convert, info, make-untrained.

Knows options and what is printed; how weights are stored is known to `checkpoint`.
"""

import dataclasses
import math
import sys
import time
from pathlib import Path

from dia_jax.checkpoint import Layout  # `dia_jax` itself imports this module, so that it costs --help nothing
from dia_jax.cli.common import Dtype, Positional, say
from dia_jax.config import Variant
from dia_jax.model import Quantize


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a Dia or DAC checkpoint between layouts.

    Reads the reference's layout (safetensors, .pth, .bin), that of transformers (sharded or not), descript's
    weights.pth and Orbax directories. The names of the tensors decide which one it is.

    Try:

    dia-jax convert Dia-1.6B-0626/ dia-orbax/ --verify

    dia-jax convert weights.pth dia-orbax/dac/ --verify

    dia-jax convert dia-orbax/ dia-transformers/ --layout transformers

    dia-jax convert Dia-1.6B-0626/ dia-int8/ --quantize int8 --dtype bfloat16
    """

    source: Positional[Path]
    """Directory or file to read."""
    target: Positional[Path]
    """A new directory to write."""
    layout: Layout = "orbax"
    """What to write: reference and reference-pth for Dia, descript for DAC, the others for both."""
    verify: bool = False
    """Read back what was written and compare every tensor, before the target appears."""
    dtype: Dtype | None = None
    """The dtype of Dia's kernels; by default they stay as they are, to the bit."""
    quantize: Quantize | None = None
    """Round Dia's kernels to int8; a quarter of float32's bytes. Only for the orbax layout."""
    variant: Variant | None = None
    """Dia's behaviour, where the config states the wrong one; it is written into the new config."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        from dia_jax.checkpoint import convert

        began = time.monotonic()
        try:
            checkpoint = convert(
                self.source,
                self.target,
                layout=self.layout,
                variant=self.variant,
                dtype=self.dtype,
                quantize=self.quantize,
                verify=self.verify,
                progress=not self.quiet,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was written") from None
        verified = ", every tensor verified" if self.verify else ""
        say(
            f"{self.target}: {checkpoint.kind} from {checkpoint.layout} to {self.layout} layout, "
            f"{len(checkpoint.tensors)} tensors{verified}, {time.monotonic() - began:.1f} s"
        )


@dataclasses.dataclass(frozen=True)
class Info:
    """Show what is in a checkpoint, the devices that JAX sees, and versions.

    Try:

    dia-jax info

    dia-jax info dia-orbax/
    """

    checkpoint: Positional[Path | None] = None
    """A local directory or file; without it only devices and versions are shown."""

    def run(self) -> None:
        from importlib.metadata import version

        import jax

        import dia_jax
        from dia_jax.devices import idle_accelerator

        if self.checkpoint is not None:
            from dia_jax.checkpoint import open_checkpoint

            checkpoint = open_checkpoint(self.checkpoint)
            tensors = checkpoint.tensors.values()
            values = sum(math.prod(t.shape) for t in tensors)
            say(f"{self.checkpoint}: {checkpoint.kind}, {checkpoint.layout} layout")
            say(f"  {len(tensors)} tensors, {values:,} values, {sum(t.nbytes for t in tensors) / 1e9:.3f} GB")
            say(f"  stored as {', '.join(sorted({t.dtype for t in tensors}))}")
            for problem in checkpoint.problems:
                say(f"  problem: {problem}")
            for name, value in dataclasses.asdict(checkpoint.config).items():
                say(f"  {name}: {value}")
        say(f"dia_jax {dia_jax.__version__}, Python {sys.version.split()[0]}")
        say(", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")))
        for device in jax.devices():
            memory = (device.memory_stats() or {}).get("bytes_limit")
            say(f"device {device.id}: {device.device_kind}" + (f", {memory / 1e9:.1f} GB" if memory else ""))
        if notice := idle_accelerator():
            say(notice)


@dataclasses.dataclass(frozen=True)
class MakeUntrained:
    """Make a small checkpoint with random weights, for trying things out.

    It makes noise, not speech. Its files have the layouts of those on the hub.

    Try:

    dia-jax make-untrained small/
    """

    target: Positional[Path]
    """A new directory; the codec goes into its folder dac/."""
    layout: Layout = "transformers"
    """The layout of Dia: any but descript."""
    dac_layout: Layout = "transformers"
    """The layout of DAC: transformers, descript or orbax."""
    variant: Variant = "0626"
    """Dia's behaviour."""
    seed: int = 0
    """The seed of the random weights."""

    def run(self) -> None:
        from dia_jax.untrained import make_untrained

        make_untrained(
            self.target, layout=self.layout, dac_layout=self.dac_layout, variant=self.variant, seed=self.seed
        )
        say(f"{self.target}: a small Dia and DAC with random weights; they make noise, not speech.")
