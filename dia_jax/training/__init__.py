"""Training Dia and its codec; needs the extra `train`. The core never imports this."""
