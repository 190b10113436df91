"""Scripts of any length, in voices that stay, judged and timed. Uses the core by its public names.

`script` and `words` read what people write, `plan` divides it, `speak` has takes made, `judge` judges them, `recording`
joins the best, `mastering` finishes it, and `project` keeps all of it in a folder with `subtitles` and a `page`.
"""

from dia_jax.longform.judge import Verdict
from dia_jax.longform.recognise import Recogniser
from dia_jax.longform.recording import Gaps
from dia_jax.longform.script import Script
from dia_jax.longform.speech import Speech

__all__ = ["Gaps", "Recogniser", "Script", "Speech", "Verdict"]
