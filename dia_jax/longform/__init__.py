"""Scripts of any length, in voices that stay, judged and timed. Uses the core by its public names."""
