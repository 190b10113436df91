"""Token for token against the reference's own code, in a clone of nari-labs/dia that you name.

    git clone https://github.com/nari-labs/dia
    python benchmarks/reference.py dia                           # 0626: the newest code
    git -C dia checkout 2811af1 && python benchmarks/reference.py dia --variant v0.1

Small random weights, written by us in the reference's layout and loaded by it; greedy, with and without a voice prompt.
Needs the dev extra and pydantic. Two things are changed in the reference as it runs: torchaudio, which it imports but
does not need here, is left out; and its start-up grid gets the last row that it lacks, so that the prompt's last code
of the last channel is given and not drawn.
"""

import argparse
import dataclasses
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from common import table

from dia_jax import Dia, save_params
from dia_jax.untrained import SMALL_DIA, random_params

TEXTS = ("[S1] Hello there friend. [S2] Hi.", "[S2] Another one, longer than before. (laughs) [S1] Yes.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--variant", choices=("0626", "v0.1"), default="0626")
    parser.add_argument("--frames", type=int, default=300)
    options = parser.parse_args()
    sys.path.insert(0, str(options.clone))
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    from dia.config import DiaConfig as ReferenceConfig
    from dia.model import Dia as Reference

    config = dataclasses.replace(SMALL_DIA, variant=options.variant)
    prepare = Reference._prepare_audio_prompt

    def with_last_row(self, prompts):
        grid, steps = prepare(self, prompts)
        row = torch.full_like(grid[:, :1], -1)
        for i, prompt in enumerate(prompts):
            for channel, delay in enumerate(config.delay_pattern):
                if delay == config.max_delay:
                    row[i, 0, channel] = config.bos_token_id if prompt is None else prompt[-1, channel]
        return torch.cat([grid, row], dim=1), steps

    Reference._prepare_audio_prompt = with_last_row
    rows = []
    for seed in range(1, 5):
        graphdef, params = random_params(config, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            save_params(Path(folder) / "dia", config, params, layout="reference-pth")
            (weights,) = (Path(folder) / "dia").glob("*.pth")
            theirs = Reference(
                ReferenceConfig.load(str(Path(folder) / "dia" / "config.json")),
                "float32",
                torch.device("cpu"),
                load_dac=False,
            )
            theirs.model.load_state_dict(torch.load(weights, weights_only=True))
        ours = Dia(config, graphdef, params)
        for text, frames in zip(TEXTS, (0, 37), strict=True):
            prompt = np.random.default_rng(seed).integers(0, 1024, (frames, 9)) if frames else None
            expected = theirs.generate(
                text,
                max_tokens=options.frames + 16 + frames,  # it counts the prompt, the delay and the start row
                temperature=0.0,
                cfg_scale=3.0,
                audio_prompt=None if prompt is None else torch.tensor(prompt),
            )
            actual = ours.generate_codes(text, audio_prompt=prompt, max_tokens=options.frames, temperature=0.0)
            same = actual.shape == expected.shape and bool((actual == expected).all())
            rows.append([options.variant, seed, frames, expected.shape[0], same])
    print(table(["variant", "weights", "prompt frames", "frames", "tokens identical"], rows))
    if not all(row[-1] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
