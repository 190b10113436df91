"""Makes a voice of what fast.py brought home, and says how well some sentences of it are understood.

    python assemble.py RUN CODEC VOICE
    python assemble.py RUN CODEC VOICE --hear 20

A quick look; the figures are those of benchmarks/tiny_voice.py.
"""

import argparse
import shutil
from pathlib import Path

import codec
import ears
import fast
import jax
import jax.numpy as jnp
import model
from flax import nnx

from dia_jax import Dia, load_params, open_checkpoint, save_params
from dia_jax.checkpoint import abstract_params

SCRIPTS = Path(__file__).parent / "open.txt"


def assemble(run: Path, made: Path, voice: Path) -> None:
    """Writes the folder of a voice, Dia and codec in float16."""
    weights = fast.load_weights(run, "weights")
    _, abstract = abstract_params(model.CONFIG, "float16")
    flat = [
        (path, value.replace(jnp.asarray(weights[".".join(map(str, path))], value.dtype)))
        for path, value in nnx.to_flat_state(abstract)
    ]
    shutil.rmtree(voice, ignore_errors=True)
    save_params(voice, model.CONFIG, nnx.from_flat_state(flat), layout="transformers")
    _, params = load_params(open_checkpoint(made))
    params = jax.tree.map(lambda value: value.astype(jnp.float16), params)
    save_params(voice / "dac", codec.CONFIG, params, layout="transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that fast.py wrote")
    parser.add_argument("codec", type=Path, help="folder of the codec")
    parser.add_argument("voice", type=Path, help="folder to write")
    parser.add_argument("--hear", type=int, default=0, help="scripts to speak and to hear")
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--cfg-scale", type=float, default=1.5)
    options = parser.parse_args()
    assemble(options.run, options.codec, options.voice)
    if not options.hear:
        return
    dia = Dia.from_pretrained(options.voice)
    scripts = SCRIPTS.read_text().splitlines()[: options.hear]
    clips = dia.generate(
        scripts,
        seed=list(range(len(scripts))),
        max_tokens=2000,
        batch_size=10,
        temperature=options.temperature,
        cfg_scale=options.cfg_scale,
    )
    wrong = said = 0
    for script, clip in zip(scripts, clips, strict=True):
        heard = ears.hear(clip)
        errors, words = ears.word_errors(script, heard)
        wrong, said = wrong + errors, said + words
        # What was made is as long as the script has bytes, if all went well.
        wanted = 6 * 512 * (len(script.replace("[S1]", "1").replace("[S2]", "2")) + 1)
        print(f"{errors:2} of {words:2}, {len(clip) / wanted:.2f} of the length\n  {script}\n  {heard}")
    print(f"word error rate {wrong / said:.3f} over {said} words")


if __name__ == "__main__":
    main()
