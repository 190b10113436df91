"""What goes in and out, as pydantic models: OpenAI's fields, and Dia's own beside them. Knows no model."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from dia_jax.serving.encoding import FormatName

Seed = Annotated[int | None, Field(ge=0, lt=2**32, strict=True, description="Makes the result repeatable.")]
Text = Annotated[str, Field(min_length=1)]
Rounded = Annotated[float, PlainSerializer(lambda value: round(value, 3))]


class _Request(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, strict=True)

    model: Annotated[
        str, Field(max_length=200, description="Any name, such as OpenAI's; the loaded model answers.")
    ] = "tts-1"
    response_format: Annotated[
        FormatName, Field(description="pcm is 16-bit mono at 24 kHz, pcm_44100 the same at 44.1 kHz.")
    ] = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4, description="At the same pitch; 1 streams, others come whole.")] = 1.0
    stream: Annotated[
        bool | None,
        Field(
            description="false: the answer is sent when it is complete, with its length in headers. By default all "
            "formats but flac are sent while they are made."
        ),
    ] = None
    seed: Seed = None
    temperature: Annotated[float | None, Field(description="By default, as the next three, the model's own.")] = None
    cfg_scale: float | None = None
    top_p: float | None = None
    cfg_filter_top_k: int | None = None
    max_tokens: Annotated[int | None, Field(description="Frames of a single clip at most, 86.13 a second.")] = None
    candidates: Annotated[int, Field(ge=1, le=8, description="Takes, of which the best by the judge is sent.")] = 1

    @property
    def options(self) -> dict[str, Any]:
        """As `speaking.Wish` has them."""
        names = ("temperature", "cfg_scale", "top_p", "cfg_filter_top_k")
        sampling = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        others = {name: getattr(self, name) for name in ("seed", "max_tokens", "candidates", "speed")}
        return {"sampling": sampling, **others}


class VoiceId(BaseModel):
    """A voice, as OpenAI's clients name their own ones."""

    model_config = ConfigDict(strict=True)

    id: Text


class SpeechRequest(_Request):
    """OpenAI's request for speech, and Dia's settings."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "tts-1", "voice": "alloy", "input": "Good morning. Did you sleep well?"},
                {
                    "voice": "S1",
                    "input": "[S1] Hello, how are you today? [S2] I am fine, thank you very much.",
                    "response_format": "wav",
                    "seed": 1,
                },
            ]
        }
    )

    input: Annotated[
        Text,
        Field(
            description="Text, spoken by the voice; or a script such as '[S1] Hello. [S2] Hi! (laughs)'. Long ones are "
            "divided into clips."
        ),
    ]
    voice: Annotated[Text | VoiceId, Field(description="One of /v1/audio/voices, or OpenAI's names.")] = "alloy"
    instructions: Annotated[str | None, Field(description="Accepted and ignored: Dia has no use for it.")] = None
    stream_format: Literal["audio", "sse"] = "audio"

    @property
    def voice_name(self) -> str:
        return self.voice if isinstance(self.voice, str) else self.voice.id


class TurnIn(BaseModel):
    """What a speaker says."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True, extra="forbid")

    speaker: Annotated[str, Field(min_length=1, max_length=40)] = "S1"
    text: Text
    pause: Annotated[float, Field(ge=0, le=60, description="Seconds of silence before the turn.")] = 0.0


class DialogueRequest(_Request):
    """A script with its cast."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "turns": [
                        {"speaker": "Anna", "text": "Good morning. Did you sleep?"},
                        {"speaker": "Ben", "text": "Not much. (sighs)", "pause": 0.5},
                    ],
                    "cast": {"Anna": "S1", "Ben": "S2"},
                    "stream_format": "json",
                    "response_format": "wav",
                },
                {"script": "[S1] Where is the tiger? [S2] Behind the door!", "stream_format": "sse"},
            ]
        }
    )

    turns: Annotated[list[TurnIn] | None, Field(min_length=1, max_length=10_000)] = None
    script: Annotated[
        Text | None, Field(description="In place of turns: a text with [Name] tags, (pause 1.5) and headings.")
    ] = None
    cast: Annotated[
        dict[str, str], Field(max_length=1000, description="A voice for each speaker; empty for the model's own.")
    ] = Field(default_factory=dict)
    stream_format: Annotated[
        Literal["audio", "sse", "json"], Field(description="json: the sound in base64, with words and turns.")
    ] = "audio"


class VoiceOut(BaseModel):
    """A voice that can be named."""

    id: str
    name: str
    kind: Literal["model", "file", "uploaded"]
    description: str


class Voices(BaseModel):
    """All voices, and the further names that they answer to."""

    voices: list[VoiceOut]
    aliases: dict[str, str]


class Model(BaseModel):
    """The loaded model, as OpenAI's clients list it."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "dia_jax"


class Models(BaseModel):
    """OpenAI's list; `models` is what Open WebUI and others read."""

    object: Literal["list"] = "list"
    data: list[Model]
    models: list[Model]


class Word(BaseModel):
    """A word of a script and when it is said, in seconds of the recording."""

    text: str
    start: Rounded
    end: Rounded
    confidence: Rounded
    speaker: str
    turn: int


class Timed(BaseModel):
    """A recording with its words."""

    audio: Annotated[str, Field(description="In base64.")]
    format: str
    sample_rate: int
    seconds: float
    seed: int
    words: list[Word]


class Status(BaseModel):
    """Whether requests are served, and how many."""

    status: Literal["loading", "ready", "draining"]
    message: str
    model: str
    slots: int
    busy: int
    queued: int
    queue_limit: int
    uploads: bool
    rate: int
    tag_voices: bool


class Problem(BaseModel):
    """What is wrong, in a sentence."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorOut(BaseModel):
    """An error, in OpenAI's shape."""

    error: Problem
