#!/usr/bin/env bash
# The road from a script to samples on the oldest versions that are supported, in an environment of its own with those of
# oldest.txt: parity, voices, streams, lists, int8, every layout of checkpoints, the codec and the command line.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -m venv .venv-oldest
.venv-oldest/bin/pip install --quiet torch==2.13.0
.venv-oldest/bin/pip install --quiet -c tests/oldest.txt -e '.[train]' transformers pytest hypothesis
cd tests
../.venv-oldest/bin/python -m pytest -q \
  test_alignment.py test_checkpoint.py test_dac.py test_devices.py test_parity.py test_quantize.py test_stream.py \
  test_cli.py::{test_a_voice_with_its_transcript,test_a_stream_writes_what_generate_writes,test_convert_and_info} \
  test_decode.py::{test_a_clip_alone_and_among_others,test_generating_in_sixteen_bit} \
  test_engine.py::test_a_latecomer_joins_with_the_next_call_and_is_what_it_is_alone \
  test_pipeline.py::{test_seeds,test_prompts_of_every_kind_are_the_same_prompt} \
  test_tiny.py::test_it_says_what_is_written
