"""The small Dia's sizes and how it is trained."""

from dia_jax import DecoderConfig, DiaConfig, EncoderConfig, SamplingSettings
from dia_jax.training.data import BatchSettings
from dia_jax.training.loop import TrainSettings
from dia_jax.training.loss import LossSettings

CONFIG = DiaConfig(
    encoder=EncoderConfig(num_layers=3, hidden_size=192, mlp_size=512, num_heads=4, num_kv_heads=4, head_dim=48),
    decoder=DecoderConfig(
        num_layers=5,
        hidden_size=192,
        mlp_size=512,
        num_heads=4,
        num_kv_heads=2,
        head_dim=48,
        cross_num_heads=4,
        cross_num_kv_heads=4,
        cross_head_dim=48,
    ),
    # Close to the likeliest: what the teacher says of a sentence leaves little to chance.
    sampling=SamplingSettings(cfg_scale=1.5, temperature=0.3, top_p=0.9, cfg_filter_top_k=45),
)


def settings(steps: int) -> TrainSettings:
    """The run. float32, because that is what a CPU is fast at."""
    return TrainSettings(
        steps=steps,
        learning_rate=2e-3,
        warmup_steps=200,
        dtype="float32",
        ema_decay=0.998,
        alignment_steps=3000,
        batch=BatchSettings(rows=2048, text_dropout=0.1),
        loss=LossSettings(alignment_weight=0.5, alignment_layers=(1, 2, 3), alignment_width=1, remat=False),
        save_every=200,
        sample_every=1000,
    )
