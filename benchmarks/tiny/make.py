"""Makes the small voice, from nothing to a folder that `Dia.from_pretrained` reads; run again, it goes on where it was.

    pip install -e '.[train]' -r benchmarks/tiny/requirements.txt
    apt-get install wordnet-base
    python benchmarks/tiny/make.py WORK

Goes on from a voice, with its codec, on an accelerator or, slowly, on two CPU cores:

    python benchmarks/tiny/make.py WORK --base dia_jax/tiny --rate 1e-3
    python benchmarks/tiny/make.py WORK --base dia_jax/tiny --rate 3e-4 --seconds 2700 \\
        --dtype float32 --positions 3072 --steps 2 --judged 16 --workers 1

In WORK: codec, data (the lexicon, spoken), run (weights and log) and voice. Each folder gets its name when it is whole,
so what is done stays done; WORK may be carried to another machine in between. Other options are those of fast.py, as
`--seconds`. A CPU is too slow to begin a voice; to see there that all runs:

    python benchmarks/tiny/make.py WORK --words 300 --seconds 240 --positions 512 --steps 1 --lengths 256 --judged 2

Knows the order of the parts, and what a voice's folder holds.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import codec
import fast
import jax
import jax.numpy as jnp
import lexicon
import model
import numpy as np
import speech
import spoken
from flax import nnx

from dia_jax import Dia, DiaError, load_params, open_checkpoint, save_params
from dia_jax.checkpoint import abstract_params

HERE = Path(__file__).parent
SAID = {
    "S1": ("alto", "The old farmer found a letter in the kitchen. Please close the door, it is cold."),
    "S2": ("bass", "My brother watched a small spider under the table. The woman was very hungry."),
}
"""What the teacher says for the voices that come with the model."""


def step(script: str, before: list[Path], target: Path, options: list[str]) -> None:
    """Runs a script of this folder, in a process of its own, unless what it makes is there.

    Args:
        script: its name.
        before: its arguments before the last, which is the folder that it makes.
        target: the folder that it makes.
        options: behind these.
    """
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    subprocess.run([sys.executable, HERE / script, *before, part, *options], check=True)
    part.rename(target)


def assemble(run: Path, made: Path, voice: Path, base: Path | None = None) -> None:
    """Writes the folder of a voice: Dia and codec in float16, and the teacher's voices for the two tags.

    Args:
        run: folder that fast.py wrote.
        made: folder of the codec.
        voice: folder to write.
        base: the voice that training went on from. The mean of both is written (Wortsman et al., 2022): it says words
            as the new one does, and confuses its two voices no more than the old one.
    """
    weights = fast.load_weights(run, "weights")
    if base:
        weights = {path: (np.asarray(old) + weights[path]) / 2 for path, old in fast.start(run, base).items()}
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
    dia = Dia.from_pretrained(voice)
    (voice / "voices").mkdir()
    for tag, (name, text) in SAID.items():
        samples = spoken.say_sentence(text, speech.VOICES[name])
        try:
            dia.make_voice((samples, speech.RATE), text, name=tag).save(voice / "voices" / f"{tag}.voice")
        except DiaError as error:
            print(f"without the voice {tag}, because Dia cannot follow its teacher yet: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for all that is made: 100 MB")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of WordNet's files")
    parser.add_argument("--words", type=int, default=lexicon.COUNT, help="the commonest only")
    parser.add_argument("--base", type=Path, help="folder of a voice, to go on from its weights, with its codec")
    options, training = parser.parse_known_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if options.base:
        training += ["--base", str(options.base)]
        if not (work / "codec").exists():
            shutil.copytree(options.base / "dac", work / "codec")
    step("spoken.py", [work / "codec", options.wordnet], work / "data", [f"--words={options.words}"])
    step("fast.py", [work / "data"], work / "run", training)
    assemble(work / "run", work / "codec", work / "voice", options.base)
    print(f"written to {work / 'voice'}")


if __name__ == "__main__":
    main()
