"""Makes the small voice, from nothing to weights; run again, it goes on where it was.

    pip install -e '.[train]' -r benchmarks/tiny/requirements.txt
    python benchmarks/tiny/train.py WORK
    python benchmarks/tiny/train.py WORK --base dia_jax/tiny --steps 4000   # goes on from the voice that ships

Computes the codec, lets the teacher speak, composes dialogues, trains, and writes WORK/voice. WORK may be
carried to another machine at any time; all that is done stays done.
"""

import argparse
import os
import shutil
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the teacher speaks in as many processes as there are cores

import codec
import corpus
import jax
import model

from dia_jax import Codec, load_params, open_checkpoint, save_params
from dia_jax.training.loop import train

TEXTS = ("[S1] The young farmer found this red letter.", "[S2] Please close the door. [S1] Good morning, Laura!")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for all that is made on the way: 1 GB")
    parser.add_argument("--steps", type=int, default=10_000, help="updates on dialogues, one a second")
    parser.add_argument("--short-steps", type=int, default=1000, help="and before, on strings of one to three words")
    parser.add_argument(
        "--base", type=Path, help="a voice to go on with, as dia_jax/tiny, and its codec; made anew if none"
    )
    parser.add_argument("--items", type=int, default=40_000, help="strings and dialogues that are made of them")
    options = parser.parse_args()
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(work / "compiled"))
    if options.base and not (work / "codec").exists():
        shutil.copytree(options.base / "dac", work / "codec")
    if not (work / "codec").exists():
        save_params(work / "codec", codec.CONFIG, corpus.build_codec()[1])
    whole = Codec(codec.CONFIG, *load_params(open_checkpoint(work / "codec")))
    values = codec.kernels(whole.params)
    data = work / "data"
    if not data.exists():
        spoken, part = corpus.speak(values, whole), work / "data.part"
        shutil.rmtree(part, ignore_errors=True)
        corpus.write(part / "short", spoken, items=options.items // 5, seed=1, short=1.0)
        # A fifth of the batches, for short clips share one: without them reading is lost again over long ones.
        corpus.write(part / "train", spoken, items=options.items, seed=2, short=0.4)
        corpus.write(part / "validation", spoken, items=400, seed=3, short=0.0)
        part.rename(data)
    if not options.base and not (work / "start").exists():
        save_params(work / "start", model.CONFIG, model.initial(values))
    # In a short string a place can be counted to, so half of what was said can be hidden, and words are read; through a
    # dialogue that cannot be, and what is hidden is a word or two between others.
    begun = options.base or train(
        work / "run-short",
        data / "short",
        model.settings(options.short_steps, history_dropout=0.5),
        base=work / "start",
        progress=True,
    )
    trained = train(
        work / "run",
        data / "train",
        model.settings(options.steps, history_dropout=0.4),
        base=begun,
        codec=whole,
        validation=data / "validation",
        sample_texts=TEXTS,
        progress=True,
    )
    _, weights = load_params(open_checkpoint(trained), dtype="float16")
    shutil.rmtree(work / "voice", ignore_errors=True)
    save_params(work / "voice", model.CONFIG, weights, layout="transformers")
    save_params(work / "voice" / "dac", codec.CONFIG, whole.params, layout="transformers")


if __name__ == "__main__":
    main()
