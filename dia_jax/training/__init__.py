"""Training Dia and its codec. Needs the extra `train`; the rest of dia_jax never imports this package.

settings.py    what a run is configured by
prepare.py     recordings and transcripts -> codes on disk
batches.py     codes on disk -> batches
loss.py        the loss of a batch
lora.py        low-rank adapters
weights.py     initial and frozen weights
step.py        one compiled update on a mesh of devices
folder.py      a run's folder: identity, checkpoints, metrics
loop.py        `train`: the updates of a run
codec.py       `train_codec`: the same for DAC
"""
