"""Who decodes what: one queue of jobs for all devices.

Knows loops and jobs; knows no text, files or arguments of callers. Requests come in from any thread, and each gets a
`Job`. Each device, or each group of devices that share a clip, has a `Loop` of its own, which takes jobs from the queue
when it has free slots.

Loops of their own rather than one program over a data axis: no device waits for another one's longest clip, script or
prompt, and a batch can grow or shrink by itself. The price is one compilation for each device; these run at the same
time. benchmarks/README.md has the comparison.
"""

import collections
import concurrent.futures
import itertools
import threading
from collections.abc import Sequence

from flax import nnx
from jax.sharding import Mesh

from dia_jax.codec import Codec
from dia_jax.config import DiaConfig
from dia_jax.dac import decoder_context
from dia_jax.decode import Request
from dia_jax.job import Job
from dia_jax.loop import Loop
from dia_jax.mesh import groups, params_of_group


class Engine:
    """Decodes any number of clips on the devices of a mesh. Safe to call from several threads.

    Args:
        graphdef, params, config: the model, placed as `mesh.shardings` says.
        mesh: from `mesh.decode_mesh`.
        codec: turns codes into samples; None for codes alone.
    """

    def __init__(
        self, graphdef: nnx.GraphDef, params: nnx.State, config: DiaConfig, *, mesh: Mesh, codec: Codec | None = None
    ):
        self._config = config
        self._context = decoder_context(codec.config) if codec else None
        self._lock = threading.Lock()
        self._waiting: list[Job] = []
        shares = groups(mesh)
        codecs = [codec and codec.on(group.devices.flat[0]) for group in shares] if len(shares) > 1 else [codec]
        self.loops = [
            Loop(graphdef, params_of_group(params, group), config, codec=each, mesh=group, take=self._take)
            for group, each in zip(shares, codecs, strict=True)
        ]
        self._held: dict[Loop, Sequence[Job]] = {loop: [] for loop in self.loops}

    def submit(self, request: Request, *, sound: bool, batch_size: int = 8, owner: object = None) -> Job:
        """Asks for a whole clip.

        Args:
            request: a checked one.
            sound: whether samples are wanted; otherwise codes.
            batch_size: clips that a loop may decode at the same time, those of other callers included. Of all requests
                that wait or run, the largest number counts.
            owner: of the clip. Where slots are short, owners take turns, so that a long list holds up nobody. None is
                one of its own.
        """
        context = self._of(sound)
        job = Job(request, self._config, batch_size=batch_size, is_stream=False, context=context, owner=owner)
        return self._start(job)

    def stream(
        self, request: Request, *, first_frames: int, max_frames: int, batch_size: int = 8, owner: object = None
    ) -> Job:
        """Asks for a clip whose samples are wanted as they come; where slots are short, it goes before whole clips.

        Args:
            request: a checked one.
            first_frames: of the first chunk; each further one is twice as long.
            max_frames: where that ends.
            batch_size, owner: see `submit`.
        """
        context = self._of(True)
        job = Job(request, self._config, batch_size=batch_size, is_stream=True, context=context, owner=owner)
        job.chunk_sizes = (min(first_frames << min(i, 32), max_frames) for i in itertools.count())
        return self._start(job)

    def compile(self, request: Request, *, batch_size: int) -> int:
        """Compiles, and keeps, every program that up to `batch_size` clips like this one can need on each device.

        Returns:
            the number of programs of `decode_chunk` among them.
        """
        with concurrent.futures.ThreadPoolExecutor(len(self.loops)) as pool:
            return sum(pool.map(lambda loop: loop.compile(request, batch_size), self.loops))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return all(loop.is_idle for loop in self.loops)

    def _of(self, sound: bool) -> int | None:
        if sound and self._context is None:
            raise ValueError("Samples need a codec, and this engine has none.")
        return self._context if sound else None

    def _start(self, job: Job) -> Job:
        with self._lock:
            self._waiting.append(job)
        for loop in self.loops:
            loop.wake()
        return job

    def _take(self, loop: Loop, live: Sequence[Job]) -> tuple[list[Job], int]:
        """Gives a loop its share of what waits: as many clips in all as every other loop has.

        Streams go first, then whoever has the fewest clips in slots and before it in the queue.
        """
        with self._lock:
            self._held[loop] = live
            self._waiting = [job for job in self._waiting if not job.done()]
            known = [*itertools.chain(*self._held.values()), *self._waiting]
            capacity = max((job.batch_size for job in known), default=0)
            share = -(-len(known) // len(self.loops))
            count = max(min(capacity, share) - len(live), 0)
            if count:
                counts: collections.Counter[object] = collections.Counter()
                ranks: dict[Job, tuple[bool, int]] = {}
                for job in known:
                    ranks[job] = not job.is_stream, counts[job.owner]
                    counts[job.owner] += 1
                self._waiting.sort(key=lambda job: ranks[job])
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            self._held[loop] = [*live, *taken]
            return taken, capacity
