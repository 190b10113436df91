"""Full-size parity with `transformers`: Dia-1.6B's logits and greedy tokens, DAC's samples and codes, on random
weights.

    python benchmarks/parity.py                       # float32 on the CPU, or on the GPU if there is one
    python benchmarks/parity.py --dtype bfloat16      # how far 16 bit strays from float32, theirs and ours
    python benchmarks/parity.py --small               # the same comparison in a minute, at tiny sizes

The reference makes the weights and writes them as it does; we load that directory as a user would. The two run one
after the other, so about 15 GB of memory suffice in float32, and 7 GB of disk. Writes benchmarks/results/parity-*.json.
"""

import argparse
import gc
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from common import DEVICE, RESULTS, SCRIPT, TORCH_DTYPES, machine, reference_dac, reference_dia, table, write_results
from flax import nnx

from dia_jax import Codec, Dia, load_params, open_checkpoint
from dia_jax.text import encode_text

torch.backends.cudnn.allow_tf32 = False  # for a convolution float32 means float32 on our side too

BAR_LOGITS = {"full": 1e-3, "small": 1e-4}
BAR_SAMPLES = 1e-4
BAR_TIE = 1e-5


def configs(small: bool) -> tuple[transformers.DiaConfig, transformers.DacConfig]:
    if not small:
        return transformers.DiaConfig(), transformers.DacConfig(sampling_rate=44_100)
    sizes = {"num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
    encoder = sizes | {"hidden_size": 48, "num_key_value_heads": 4}
    cross = {
        "cross_num_attention_heads": 4,
        "cross_num_key_value_heads": 4,
        "cross_head_dim": 16,
        "cross_hidden_size": 48,
    }
    decoder = sizes | {"hidden_size": 64, "num_key_value_heads": 2} | cross
    return (
        transformers.DiaConfig(encoder_config=encoder, decoder_config=decoder),
        transformers.DacConfig(sampling_rate=44_100, encoder_hidden_size=8, decoder_hidden_size=128),
    )


def delayed(prompt: np.ndarray, config: transformers.DiaConfig) -> torch.Tensor:
    """The reference's start-up grid, as its processor lays it out: BOS, the delayed prompt, PAD where free."""
    delays, dec = config.delay_pattern, config.decoder_config
    grid = np.full((1, 1 + len(prompt) + max(delays), len(delays)), dec.pad_token_id, np.int32)
    for channel, delay in enumerate(delays):
        grid[0, : 1 + delay, channel] = dec.bos_token_id
        grid[0, 1 + delay : 1 + delay + len(prompt), channel] = prompt[:, channel]
    return torch.tensor(grid, device=DEVICE)


@torch.no_grad()
def run_reference(config: transformers.DiaConfig, inputs: dict[str, Any], dtype: str, folder: Path) -> dict[str, Any]:
    model = reference_dia(config)
    model.save_pretrained(folder, max_shard_size="2GB")
    model = model.to(TORCH_DTYPES[dtype])
    text, grid = (torch.tensor(inputs[name], device=DEVICE) for name in ("text", "grid"))
    logits = model(input_ids=text, attention_mask=(text != 0).long(), decoder_input_ids=grid).logits.float().cpu()
    results: dict[str, Any] = {"logits": logits.reshape(len(grid), 9, grid.shape[1], -1).transpose(1, 2).numpy()}
    if dtype == "float32":
        for name in ("plain", "prompted"):
            prompt = inputs[name]
            start = delayed(prompt, config)
            out = (
                model.generate(
                    input_ids=text[:1, : inputs["length"]],
                    attention_mask=torch.ones((1, inputs["length"]), dtype=torch.long, device=DEVICE),
                    decoder_input_ids=start,
                    decoder_attention_mask=torch.ones(start.shape[:2], dtype=torch.long, device=DEVICE),
                    max_new_tokens=inputs["frames"] + 16,
                    do_sample=False,
                    guidance_scale=3.0,
                    top_k=45,
                )[0]
                .cpu()
                .numpy()
            )
            end = int(np.flatnonzero(out[:, 0] == config.decoder_config.eos_token_id)[0])
            frames = np.arange(len(prompt), end - 1)
            results[name] = np.stack([out[1 + frames + d, c] for c, d in enumerate(config.delay_pattern)], axis=1)
    return results


def run_ours(inputs: dict[str, Any], dtype: str, folder: Path) -> dict[str, Any]:
    dia = Dia.from_pretrained(folder, load_codec=False, dtype=dtype, progress=True)
    forward = jax.jit(lambda graphdef, params, text, grid: nnx.merge(graphdef, params)(text, grid), static_argnums=0)
    results = {"logits": np.asarray(forward(dia.graphdef, dia.params, inputs["text"], inputs["grid"]))}
    if dtype == "float32":
        for name in ("plain", "prompted"):
            prompt = inputs[name] if len(inputs[name]) else None
            results[name] = dia.generate_codes(
                SCRIPT, audio_prompt=prompt, max_tokens=inputs["frames"], temperature=0.0, cfg_scale=3.0
            )
    return results


@torch.no_grad()
def compare_codec(config: transformers.DacConfig, folder: Path) -> list[list[Any]]:
    reference = reference_dac(config)
    reference.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    codec = Codec(checkpoint.config, *load_params(checkpoint))
    codes = np.random.default_rng(0).integers(0, config.codebook_size, (260, config.n_codebooks))
    samples = reference.decode(audio_codes=torch.tensor(codes.T[None], device=DEVICE)).audio_values[0]
    expected_codes = reference.encode(samples[None, None]).audio_codes[0].T.cpu().numpy()
    samples = samples.cpu().numpy()
    ours = codec.decode(codes)
    error = float(np.abs(ours - samples).max() / np.abs(samples).max())
    our_codes = codec.encode(samples)
    return [
        ["DAC decode, 260 frames: max difference / peak", f"{error:.1e}", f"{BAR_SAMPLES:.0e}", error <= BAR_SAMPLES],
        compare_codes(codec, samples, our_codes, expected_codes),
    ]


def compare_codes(codec: Codec, samples: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> list[Any]:
    """Frames whose codes differ, and how near a tie they were: the gap between the two entries' scores, in -3 .. 1.

    Only a frame's first differing codebook is a cause; the later ones see another residual.
    """
    differing = (ours != theirs).any(axis=1)
    gap = 0.0
    if differing.any():
        module = nnx.merge(codec.graphdef, codec.params)
        latents = module.encoder(samples[None], lambda x: x)
        first = np.where(differing, (ours != theirs).argmax(axis=1), -1)
        for i, quantizer in enumerate(module.quantizer.quantizers):
            scores = np.asarray(quantizer.scores(latents))[0]
            for frame in np.flatnonzero(first == i):
                gap = max(gap, abs(float(scores[frame, ours[frame, i]] - scores[frame, theirs[frame, i]])))
            latents = latents - quantizer(ours[None, :, i])
    what = f"DAC encode, {len(ours)} frames: that differ (largest gap between the two scores)"
    return [what, f"{int(differing.sum())} ({gap:.1e})", f"ties, {BAR_TIE:.0e}", gap <= BAR_TIE]


def check(*, small: bool, dtype: str = "float32", frames: int = 300) -> list[list[Any]]:
    """Runs both and compares.

    Args:
        small: tiny sizes.
        dtype: of the weights. Below float32, all that is compared is how far each strays from float32.
        frames: of the greedy generations.

    Returns:
        rows of what was compared, the value, its bar, and whether it is within; the last two are "" without a bar.
    """
    config, codec_config = configs(small)
    rng = np.random.default_rng(0)
    tokens = encode_text(SCRIPT, max_length=1024)
    text = np.zeros((2, len(tokens) + 20), np.int64)
    text[0, : len(tokens)] = tokens
    text[1] = rng.integers(1, 255, text.shape[1])
    inputs = {
        "text": text,
        "grid": rng.integers(0, 1026, (2, 96, 9)),
        "length": len(tokens),
        "frames": frames,
        "plain": np.zeros((0, 9), np.int64),
        "prompted": rng.integers(0, 1024, (50, 9)),
    }
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        theirs = run_reference(config, inputs, dtype, Path(folder) / "dia")
        if dtype != "float32":
            exact = run_reference(config, inputs | {"frames": 0}, "float32", Path(folder) / "again")["logits"]
        gc.collect()
        torch.cuda.empty_cache() if DEVICE == "cuda" else None
        ours = run_ours(inputs, dtype, Path(folder) / "dia")
        gc.collect()
        if dtype == "float32":
            deviation = theirs["logits"].std()
            error = float(np.abs(ours["logits"] - theirs["logits"]).max() / deviation)
            bar = BAR_LOGITS["small" if small else "full"]
            rows.append(["logits, 2 x 96 rows: max difference / deviation", f"{error:.1e}", f"{bar:.0e}", error <= bar])
            for name in ("plain", "prompted"):
                same = ours[name].shape == theirs[name].shape and bool((ours[name] == theirs[name]).all())
                what = f"greedy tokens, {len(theirs[name])} frames" + (", 50 of prompt" if name == "prompted" else "")
                wrong = int((ours[name] != theirs[name]).sum()) if ours[name].shape == theirs[name].shape else "length"
                rows.append([f"{what}: that differ", wrong, 0, same])
            rows += compare_codec(codec_config, Path(folder) / "dac")
        else:
            for who, logits in (("ours", ours["logits"]), ("transformers", theirs["logits"])):
                strays = float(np.abs(logits - exact).mean() / exact.std())
                what = f"{dtype} logits of {who} against float32: mean difference / deviation"
                rows.append([what, f"{strays:.1e}", "", ""])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=TORCH_DTYPES, default="float32")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--frames", type=int, default=300, help="frames of the greedy generations")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    size = "small" if options.small else "full"
    rows = check(small=options.small, dtype=options.dtype, frames=options.frames)

    print(f"\n{size} size, {options.dtype}, {machine()['device']}\n")
    print(table(["check", "value", "bar", "within"], rows))
    path = write_results(
        options.results,
        f"parity-{size}-{options.dtype}-{machine()['device'].replace(' ', '-').lower()}",
        machine() | {"size": size, "dtype": options.dtype, "rows": rows},
    )
    print(f"\nwritten to {path}")
    if not all(row[3] for row in rows if row[3] != ""):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
