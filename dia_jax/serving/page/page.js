// The server's page at work: a script is spoken, heard while it is made, kept and downloaded; voices come and go.
// Knows the server's HTTP interface and the browser's sound. Knows no model: what a script, a setting or a voice may be
// is the server's to say, and its sentences are shown as they come. Asks no other host for anything.

const SETTINGS = ["temperature", "cfg_scale", "top_p", "cfg_filter_top_k", "speed"];
const SHORTEST = 5, LONGEST = 15; // seconds of a voice's recording
const KEPT = 20; // recordings

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
// Where a handler does all that is to be done.
const on = (id, type, act) =>
  $(id).addEventListener(type, (event) => {
    if (type === "submit") event.preventDefault();
    act(event);
  });
const element = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
// A live region is read out whenever its text is set, even to what it was.
const tell = (node, text) => node.textContent === text || (node.textContent = text);

/** Takes the keyboard to what is to be put right; no other field is marked as wrong then. */
function pointAt(field) {
  document.querySelector("[aria-invalid]")?.removeAttribute("aria-invalid");
  if (field.willValidate) field.ariaInvalid = "true"; // which a button cannot be
  field.focus();
}

// --- Asking the server -----------------------------------------------------------------------------------------------

/** What went wrong, in a sentence for people. */
class Problem extends Error {
  constructor(message, { param = null, status = 0, wait = 0 } = {}) {
    super(message);
    this.param = param; // the part of the request that was wrong
    this.status = status;
    this.wait = wait; // seconds after which another try makes sense; 0 where none does
  }
}

async function problemOf(response) {
  const { error } = await response.json().catch(() => ({}));
  const { status } = response, param = error?.param;
  const wait = status === 429 || status === 503 ? Number(response.headers.get("Retry-After")) || 5 : 0;
  return new Problem(error?.message ?? `The server answered ${status}, and not why.`, { param, status, wait });
}

/** @param accepted a status that is an answer too, although it is no success. */
async function request(path, { accepted, ...options } = {}) {
  for (;;) {
    const key = sessionStorage.getItem("key");
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await fetch(path, { ...options, headers }).catch((error) => {
      throw error.name === "AbortError" ? error : new Problem("The server cannot be reached; does it run?");
    });
    if (response.ok || response.status === accepted) return response;
    if (response.status !== 401) throw await problemOf(response);
    // Another request may have got a key while this one was under way.
    if (sessionStorage.getItem("key") === key && !(await askForKey(key))) {
      throw new Problem("The server asks for an API key.", { status: 401 });
    }
  }
}

async function askFor(path, options) {
  const response = await request(path, options);
  return response.json().catch(() => {
    throw new Problem("What the server answered cannot be read.");
  });
}

let asking = null; // one dialog serves all requests that were refused

function askForKey(refused) {
  const dialog = $("key-dialog");
  asking ??= new Promise((resolve) => {
    dialog.returnValue = "";
    $("key-refused").hidden = !refused;
    dialog.showModal();
    dialog.onclose = () => {
      const given = dialog.returnValue === "use";
      if (given) sessionStorage.setItem("key", $("key").value);
      $("key").value = "";
      asking = null;
      resolve(given);
      if (given && !$("key-button").hidden) look();
    };
  });
  return asking;
}

/** What a stream of server-sent events says. One that breaks ends here as one that is complete does. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const events = (rest + value).split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const event of events) if (event.startsWith("data:")) yield JSON.parse(event.slice(5));
  }
}

function samplesOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

function delay(seconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

// --- Recordings ------------------------------------------------------------------------------------------------------

/** Sound and words as they come. `order` is what the server was asked for; `done` says that no more will come. */
class Recording {
  rate = 44100;
  seed = null;
  samples = new Int16Array(1 << 18);
  length = 0;
  peaks = []; // the loudest sample of each hundredth of a second
  loudest = 0;
  words = [];
  done = false;

  constructor(order) {
    this.order = order;
  }

  get seconds() {
    return this.length / this.rate;
  }

  get wav() {
    return wavOf(this.samples.subarray(0, this.length), this.rate);
  }

  add(samples) {
    const length = this.length + samples.length, span = this.rate / 100;
    if (length > this.samples.length) {
      const larger = new Int16Array(Math.max(length, 2 * this.samples.length));
      larger.set(this.samples.subarray(0, this.length));
      this.samples = larger;
    }
    this.samples.set(samples, this.length);
    for (let i = 0; i < samples.length; i++) {
      const at = Math.floor((this.length + i) / span), loud = Math.abs(samples[i]) / 32768;
      this.peaks[at] = Math.max(this.peaks[at] ?? 0, loud);
      this.loudest = Math.max(this.loudest, loud);
    }
    this.length = length;
  }

  addWords(words) {
    for (const word of words) {
      // The word at a time is searched for by halves, so starts must not fall.
      this.words.push({ ...word, start: Math.max(word.start, this.words.at(-1)?.start ?? 0) });
    }
  }

  /** The number of the last word that has begun by this time; -1 before the first. */
  wordAt(seconds) {
    let low = 0, high = this.words.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.words[middle].start <= seconds) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }
}

function wavOf(samples, rate) {
  const size = samples.byteLength, riff = 0x46464952, wave = 0x45564157, fmt = 0x20746d66, data = 0x61746164;
  const monoPcm = 0x10001, sixteenBitsInTwoBytes = 0x100002;
  const head = [riff, 36 + size, wave, fmt, 16, monoPcm, rate, 2 * rate, sixteenBitsInTwoBytes, data, size];
  return new Blob([new Uint32Array(head), samples], { type: "audio/wav" });
}

function download(recording) {
  const href = URL.createObjectURL(recording.wav);
  element("a", { href, download: `dia_jax_${recording.seed}.wav` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000); // the browser reads it only after it has asked where to put it
}

// --- Hearing ---------------------------------------------------------------------------------------------------------

/** Plays a recording, also while it is still being made: what is there is handed to the sound card a little ahead. */
class Player {
  recording = null;
  playing = false; // is meant to; it may have to wait for sound
  waiting = false;
  starved = false; // had to wait although it had begun
  #context = null;
  #at = 0; // the sample to go on from, where nothing sounds
  #begun = null; // {time, at}: when, by the context's clock, which sample sounds; null where nothing does
  #planned = 0; // the sample up to which all is handed over
  #sources = new Set();
  #cushion = 0.25; // seconds to have before it begins; more each time that they were too few

  constructor(changed) {
    this.changed = changed;
    setInterval(() => this.#plan(), 50);
  }

  /** To be called in a click or a key press, since browsers let no page sound before one. */
  wake(rate) {
    this.#context ??= new AudioContext({ sampleRate: rate });
    this.#context.resume().catch(() => {}); // refused where the system holds the sound; the next Play asks again
  }

  get seconds() {
    if (!this.#begun) return this.recording ? this.#at / this.recording.rate : 0;
    const since = this.#context.currentTime - (this.#context.outputLatency || 0) - this.#begun.time;
    const { rate } = this.recording, { at } = this.#begun;
    return clamp(at + since * rate, at, this.#planned) / rate;
  }

  load(recording) {
    this.pause();
    Object.assign(this, { recording, starved: false });
    this.#at = 0;
    this.#cushion = 0.25;
  }

  play() {
    this.wake(this.recording.rate);
    if (this.recording.done && this.#at >= this.recording.length) this.#at = 0;
    this.playing = true;
    this.grown();
  }

  pause() {
    this.#silence(this.recording ? Math.round(this.seconds * this.recording.rate) : 0);
    this.playing = this.waiting = false;
    this.changed();
  }

  seek(seconds) {
    this.#silence(clamp(Math.round(seconds * this.recording.rate), 0, this.recording.length));
    this.grown();
  }

  /** To be called when more sound has come, or the last. */
  grown() {
    this.#plan();
    this.changed();
  }

  #silence(at) {
    for (const source of this.#sources) source.stop();
    this.#sources.clear();
    this.#begun = null;
    this.#at = at;
  }

  #plan() {
    if (!this.playing) return;
    const { recording } = this, { rate } = recording, now = this.#context.currentTime;
    if (this.#begun && this.#timeOf(this.#planned) <= now) {
      // All that was handed over has been heard. If more was there, a timer came late, and sound was not lacking.
      if (this.#planned === recording.length && !recording.done) {
        this.starved = true;
        this.#cushion = Math.min(2 * this.#cushion, 4);
      }
      this.#silence(this.#planned);
    }
    if (!this.#begun) {
      const there = recording.length - this.#at;
      if (recording.done && !there) return this.pause();
      this.waiting = !recording.done && there < this.#cushion * rate;
      if (this.waiting) return;
      // A whole number of the context's samples, so that pieces join without being interpolated.
      const { sampleRate } = this.#context, time = Math.ceil((now + 0.05) * sampleRate) / sampleRate;
      this.#begun = { time, at: this.#at };
      this.#planned = this.#at;
      this.changed();
    }
    // Two seconds ahead, as browsers call the timers of a page in the background only once a second.
    while (this.#planned < recording.length && this.#timeOf(this.#planned) < now + 2) {
      this.#handOver(Math.min(recording.length, this.#planned + rate));
    }
  }

  #timeOf(sample) {
    return this.#begun.time + (sample - this.#begun.at) / this.recording.rate;
  }

  #handOver(end) {
    const { samples, rate } = this.recording, start = this.#planned;
    const buffer = this.#context.createBuffer(1, end - start, rate), channel = buffer.getChannelData(0);
    for (let i = 0; i < channel.length; i++) channel[i] = samples[start + i] / 32768;
    const source = new AudioBufferSourceNode(this.#context, { buffer });
    source.connect(this.#context.destination);
    source.onended = () => this.#sources.delete(source);
    source.start(this.#timeOf(start));
    this.#sources.add(source);
    this.#planned = end;
  }
}

// --- Seeing ----------------------------------------------------------------------------------------------------------

/** Who says what in a script. Headings, comments and the marks of emphasis are not said. */
function turnsOf(script) {
  const parts = script
    .replace(/<!--[^]*?-->/g, " ")
    .replace(/^[ \t]*(?:#{1,6}[ \t].*|(?:[-*_][ \t]*){3,})$/gm, "")
    .replace(/(?<![\p{L}\p{N}])[*_]+|[*_]+(?![\p{L}\p{N}])/gu, "")
    .replace(/\s+/g, " ")
    .split(/\[([^[\]]+)\]:?/);
  const turns = parts[0].trim() || parts.length === 1 ? [{ speaker: "S1", text: parts[0].trim() }] : [];
  for (let i = 1; i < parts.length; i += 2) turns.push({ speaker: parts[i].trim(), text: parts[i + 1].trim() });
  return turns;
}

const speakersOf = (script) => [...new Set(turnsOf(script).map(({ speaker }) => speaker))];

/** A recording's script, in which words become buttons as soon as their times are known. */
class Transcript {
  #turns = []; // {speaker, rest}: `rest` is the text node of what has no times yet
  #turn = 0;
  #words = [];
  #begun = -1; // the last word that has begun
  #now = -1; // the word that is lit

  constructor(box) {
    this.box = box;
    box.addEventListener("click", ({ target }) => this.#playFrom(this.#words.indexOf(target)));
    box.addEventListener("keydown", (event) => this.#move(event));
  }

  show(recording) {
    Object.assign(this, { recording });
    this.#turn = 0;
    this.#words = [];
    this.#turns = turnsOf(recording.order.script).map(({ speaker, text }) => ({ speaker, rest: new Text(text) }));
    const shown = this.#turns.filter(({ rest }) => rest.data).map(({ speaker, rest }) => {
      return element("p", { className: "turn" }, element("b", {}, speaker), " ", element("span", {}, rest));
    });
    this.box.replaceChildren(...shown);
    this.box.scrollTop = 0;
    this.add(recording.words);
  }

  add(words) {
    for (const word of words) this.#place(word);
    this.#begun = this.#now = -2; // words that come late may have been said
  }

  // Words come in the script's order, but may be written a little differently there: then the next one is taken.
  #place(word) {
    const wordsIn = ({ rest }) => rest.data.replace(/\([^()]*\)/g, (sound) => " ".repeat(sound.length));
    const fits = (turn, i) => i >= this.#turn && turn.speaker === word.speaker && wordsIn(turn).trim();
    const found = this.#turns.findIndex(fits);
    if (found >= 0) this.#turn = found;
    const turn = this.#turns[this.#turn], text = wordsIn(turn), next = /\S+|$/.exec(text);
    const exact = text.indexOf(word.text, next.index) === next.index;
    const node = turn.rest.splitText(next.index);
    turn.rest = node.splitText(exact ? word.text.length : next[0].length);
    const textContent = node.data || word.text;
    const button = element("button", { type: "button", className: "word", tabIndex: -1, textContent });
    node.replaceWith(button);
    this.#words.push(button);
  }

  light(seconds) {
    const begun = this.recording.wordAt(seconds);
    const now = seconds <= this.recording.words[begun]?.end + 0.2 ? begun : -1;
    if (begun === this.#begun && now === this.#now) return;
    [this.#begun, this.#now] = [begun, now];
    this.#words.forEach((button, i) => {
      button.classList.toggle("said", i <= begun);
      button.ariaCurrent = i === now ? "true" : null;
    });
    const button = this.#words[now], { box } = this;
    if (!button) return;
    const above = button.offsetTop < box.scrollTop;
    const below = button.offsetTop + button.offsetHeight > box.scrollTop + box.clientHeight;
    if (above || below) box.scrollTop = button.offsetTop - box.clientHeight / 4;
  }

  #playFrom(word) {
    if (word < 0) return;
    player.seek(this.recording.words[word].start);
    player.play();
  }

  #move(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !this.#words.length) return;
    event.preventDefault();
    const focused = this.#words.indexOf(document.activeElement);
    const next = focused < 0 ? this.#begun : focused + step;
    this.#words[clamp(next, 0, this.#words.length - 1)].focus();
  }
}

/** Draws a recording's loudness over time, how far it has been heard, and who speaks where. */
class Wave {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    new ResizeObserver(changed).observe(canvas);
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
      matchMedia(query).addEventListener("change", changed);
    }
  }

  /** Seconds from the left edge to the right one. What grows has some room left, so that it is seen to grow. */
  static span(recording) {
    return recording.done ? Math.max(recording.seconds, 0.01) : Math.max(6, recording.seconds * 1.2);
  }

  draw(recording, seconds) {
    const { canvas, pen } = this, style = getComputedStyle(canvas), scale = devicePixelRatio;
    const width = canvas.clientWidth, height = canvas.clientHeight, labels = 20, tallest = height - labels;
    const [heard, unheard, unmade, ink, faint] = ["--accent", "--bar", "--rule", "--ink", "--faint"].map((name) =>
      style.getPropertyValue(name),
    );
    const wide = Math.round(width * scale), high = Math.round(height * scale);
    if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const { peaks, words, loudest } = recording ?? { peaks: [], words: [], loudest: 0 };
    const xOf = (time) => (recording ? (time / Wave.span(recording)) * width : 0), here = xOf(seconds);
    const step = 5, perBar = recording ? (Wave.span(recording) * 100 * step) / width : 1;
    for (let bar = 0; bar * step < width; bar++) {
      const first = Math.floor(bar * perBar), next = Math.max(first + 1, Math.floor((bar + 1) * perBar));
      let peak = 0;
      for (let i = first; i < next; i++) peak = Math.max(peak, peaks[i] ?? 0);
      // A root lifts what is quiet, and what is all but silent is not blown up.
      const tall = Math.max(2, (peak / Math.max(loudest, 0.1)) ** 0.8 * (tallest - 8));
      pen.fillStyle = bar * step < here ? heard : first < peaks.length ? unheard : unmade;
      pen.beginPath();
      pen.roundRect(bar * step + 1, (tallest - tall) / 2, 3, tall, 1.5);
      pen.fill();
    }
    pen.fillStyle = faint;
    pen.font = `600 12px ${style.fontFamily}`;
    pen.textBaseline = "bottom";
    let free = 0;
    words.forEach(({ start, speaker }, i) => {
      const x = xOf(start), end = x + pen.measureText(speaker).width;
      if (speaker === words[i - 1]?.speaker || x < free || end > width) return;
      pen.fillText(speaker, x, height - 1);
      free = end + 8;
    });
    pen.fillStyle = ink;
    if (peaks.length) pen.fillRect(clamp(here - 1, 0, width - 2), 0, 2, tallest);
  }
}

const player = new Player(refresh), wave = new Wave($("wave"), refresh), transcript = new Transcript($("words"));
let frame = 0;

/** Shows the player's state with the next picture on the screen, and goes on while it plays. */
function refresh() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const { recording, playing, seconds } = player;
    wave.draw(recording, seconds);
    if (!recording) return;
    transcript.light(playing || seconds ? seconds : -1);
    $("play").dataset.playing = playing;
    tell($("play-label"), playing ? "Pause" : "Play");
    tell($("time"), `${clock(seconds)} of ${clock(recording.seconds)}`);
    Object.assign($("seek"), { max: Wave.span(recording), value: seconds, ariaValueText: $("time").textContent });
    const speakers = [...new Set(recording.words.map(({ speaker }) => speaker))].join(", ");
    const picture = `Loudness over ${recording.seconds.toFixed(1)} seconds${speakers && `, spoken by ${speakers}`}.`;
    if (recording.done && wave.canvas.ariaLabel !== picture) wave.canvas.ariaLabel = picture;
    if (playing) refresh();
  });
}

function listen(recording) {
  player.load(recording);
  transcript.show(recording);
  for (const id of ["play", "seek", "download"]) $(id).disabled = false;
  $("words-help").hidden = false;
  player.play();
}

on("play", "click", () => (player.playing ? player.pause() : player.play()));
on("seek", "input", () => player.seek(Number($("seek").value)));
on("download", "click", () => download(player.recording));

// --- Making ----------------------------------------------------------------------------------------------------------

let making = null; // the AbortController of what is being made

function say(sentence, { bad = false, progress = "" } = {}) {
  $("status").classList.toggle("bad", bad);
  tell($("sentence"), sentence);
  tell($("progress"), progress);
}

function refuse(field, sentence) {
  say(sentence, { bad: true });
  if ($("settings").contains(field)) $("settings").open = true;
  pointAt(field);
}

function orderOf() {
  const order = { script: $("script").value };
  const cast = [...$("cast").querySelectorAll("select")].filter(({ value }) => value);
  if (cast.length) order.cast = Object.fromEntries(cast.map(({ name, value }) => [name, value]));
  if (!$("new-seed").checked && $("seed").value) order.seed = Number($("seed").value);
  for (const name of SETTINGS) if ($(name).value) order[name] = Number($(name).value);
  return order;
}

async function speak() {
  if (making) return;
  if (!$("script").value.trim()) return refuse($("script"), "Write a script first.");
  const wrong = $("composer").querySelector(":invalid:not(fieldset)");
  if (wrong) return refuse(wrong, `${wrong.labels[0].textContent}: ${wrong.validationMessage}`);
  making = new AbortController();
  $("speak").ariaDisabled = "true"; // and not `disabled`, which would lose the keyboard's place
  $("stop").hidden = false;
  player.wake(server.rate ?? 44100);
  const { signal } = making, recording = new Recording(orderOf());
  try {
    while (!(await take(recording, signal)));
  } catch (problem) {
    if (signal.aborted) say(recording.length ? "Stopped; what was made is kept." : "Cancelled.");
    else if (!(problem instanceof Problem)) throw problem;
    else if ($(problem.param)?.form === $("composer")) refuse($(problem.param), problem.message);
    else say(problem.message, { bad: true });
  } finally {
    making.abort(); // a stream that is not wanted any more
    making = null;
    recording.done = true;
    if (player.recording === recording) player.grown();
    if (recording.length) keep(recording);
    $("speak").ariaDisabled = "false";
    if (document.activeElement === $("stop")) $("speak").focus();
    $("stop").hidden = true;
  }
}

/** One try at an order. False says that the server had no room, and that the time it named has passed. */
async function take(recording, signal) {
  $("stop").textContent = "Cancel";
  say("Asking the server.");
  const body = JSON.stringify({ ...recording.order, response_format: "pcm_44100", stream_format: "sse" });
  const headers = { "Content-Type": "application/json" };
  try {
    await receive(request("v1/audio/dialogue", { method: "POST", headers, body, signal }), recording);
    return true;
  } catch (problem) {
    if (!problem.wait) throw problem;
    for (let left = problem.wait; left > 0; left--) {
      const reason = problem.status === 429 ? "The server is busy;" : "The server is not ready;";
      say(reason, { progress: `trying again in ${left} s.` });
      await delay(1, signal);
    }
    return false;
  }
}

async function receive(asked, recording) {
  let began = performance.now(), ended = false; // a server may say that it began only with the first sound
  const response = await asked;
  const took = () => (performance.now() - began) / 1000, pace = () => (recording.seconds / took()).toFixed(1);
  const heard = () => player.recording === recording;
  const report = setInterval(() => {
    if (!recording.length) return;
    const starving = heard() && player.waiting && player.starved;
    say(starving ? "Waiting for more sound, as it is made more slowly than it is heard." : "Speaking.", {
      progress: `${recording.seconds.toFixed(1)} s made so far, ${pace()} × real time.`,
    });
  }, 250);
  const handlers = {
    "dialogue.queued": ({ ahead }) => {
      began = performance.now();
      say(ahead ? `Waiting in the queue, with ${ahead} ahead.` : "Next in the queue.");
    },
    "dialogue.started": ({ seed, sample_rate: rate }) => {
      Object.assign(recording, { seed, rate });
      if ($("new-seed").checked) $("seed").value = seed;
      $("stop").textContent = "Stop";
      say("Speaking; the first sound is on its way.");
      listen(recording);
    },
    "speech.audio.delta": ({ audio }) => {
      recording.add(samplesOf(audio));
      if (heard()) player.grown();
    },
    "dialogue.words": ({ words }) => {
      recording.addWords(words);
      if (heard()) transcript.add(words);
      refresh();
    },
    "speech.audio.done": () => {
      ended = true;
      const made = `${recording.seconds.toFixed(1)} s of speech, made in ${took().toFixed(1)} s`;
      say(`Done: ${made} (${pace()} × real time) with seed ${recording.seed}.`);
    },
    error: ({ error }) => {
      throw new Problem(error.message, { param: error.param });
    },
  };
  try {
    for await (const event of eventsOf(response)) handlers[event.type]?.(event);
  } finally {
    clearInterval(report);
  }
  const kept = recording.length ? "; what came until then is kept" : "";
  if (!ended) throw new Problem(`The connection to the server broke${kept}.`);
}

on("composer", "submit", speak);
on("composer", "keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  speak();
});
on("stop", "click", () => {
  making?.abort();
  player.pause();
});
on("new-seed", "change", () => ($("seed").disabled = $("new-seed").checked));

// --- What was made ---------------------------------------------------------------------------------------------------

let count = 0;

/** A button that says the same as others do; `about` is the id of what tells them apart. */
function action(textContent, about, onclick, className = "") {
  const button = element("button", { type: "button", textContent, onclick, className });
  button.setAttribute("aria-describedby", about);
  return button;
}

function keep(recording) {
  const { order, seed, seconds } = recording, id = `recording-${++count}`;
  const leave = () => {
    item.remove();
    $("recordings-title").focus();
  };
  const actions = [
    action("Play", id, () => listen(recording)),
    action("Download", id, () => download(recording)),
    action("Use this script again", id, () => reuse(recording)),
    action("Delete", id, leave, "quiet"),
  ];
  const item = element(
    "li",
    {},
    element("p", { id, className: "excerpt" }, order.script),
    element("p", { className: "help" }, `${seconds.toFixed(1)} s, seed ${seed}`),
    element("div", { className: "actions" }, ...actions),
  );
  $("recordings").prepend(item);
  if ($("recordings").children.length > KEPT) {
    $("recordings").lastElementChild.remove();
    tell($("dropped"), `Only the last ${KEPT} recordings are kept; older ones were dropped.`);
  }
}

function reuse({ order, seed }) {
  $("script").value = order.script;
  for (const name of SETTINGS) $(name).value = order[name] ?? "";
  $("seed").value = seed;
  for (const speaker of speakersOf(order.script)) chosen.set(speaker, order.cast?.[speaker] ?? "");
  showCast();
  $("script").focus();
}

// --- Writing ---------------------------------------------------------------------------------------------------------

let voices = [];
const chosen = new Map(); // speaker -> the id of the voice that a person chose, or "" for the model's own

function showCast() {
  const fields = speakersOf($("script").value).map((speaker, i) => {
    const options = voices.map(({ id, name }) => element("option", { value: id }, name));
    options.unshift(element("option", { value: "" }, "the model's own"));
    const select = element("select", { id: `cast-${i}`, name: speaker }, ...options);
    const same = voices.find(({ id, name }) => id === speaker || name === speaker);
    select.value = chosen.get(speaker) ?? same?.id ?? "";
    if (select.selectedIndex < 0) select.value = ""; // the voice is gone
    select.addEventListener("change", () => chosen.set(speaker, select.value));
    return element("div", { className: "field" }, element("label", { htmlFor: select.id }, speaker), select);
  });
  $("cast").replaceChildren(...fields);
}

function insert(tag) {
  const script = $("script"), { value, selectionStart, selectionEnd } = script;
  const before = /(^|\s)$/.test(value.slice(0, selectionStart)) ? "" : " ";
  const after = /^\s/.test(value.slice(selectionEnd)) ? "" : " ";
  script.setRangeText(before + tag + after, selectionStart, selectionEnd, "end");
  script.focus();
  showCast();
}

on("composer", "click", ({ target }) => target.dataset.insert && insert(target.dataset.insert));
on("script", "input", showCast);
document.addEventListener("input", ({ target }) => target.removeAttribute("aria-invalid"));

// --- Voices ----------------------------------------------------------------------------------------------------------

let sample = null; // a voice's recording, as a WAV file
let recorder = null;

async function loadVoices() {
  voices = (await askFor("v1/audio/voices")).voices;
  showCast();
  const named = voices.filter(({ kind }) => kind !== "model").slice(0, 6);
  $("voice-tags").replaceChildren(
    ...named.map(({ name }) => {
      const chip = element("button", { type: "button", className: "chip" }, `[${name}]`);
      chip.dataset.insert = chip.textContent;
      return chip;
    }),
  );
  $("voices").replaceChildren(
    ...voices.map((voice, i) => {
      const id = `voice-${i}`, description = element("span", { className: "help" }, voice.description);
      const about = element("p", { id }, element("b", {}, voice.name), " ", description);
      const item = element("li", { className: "voice" }, about);
      if (voice.kind === "uploaded") item.append(action("Delete", id, ({ target }) => remove(voice, target), "quiet"));
      return item;
    }),
  );
}

function answer(sentence, { bad = false, field = null } = {}) {
  $("voice-status").classList.toggle("bad", bad);
  tell($("voice-status"), sentence);
  if (field) pointAt(field);
}

/** Tries something of which a problem's sentence is the whole result. */
async function attempt(task) {
  try {
    await task();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    answer(problem.message, { bad: true });
  }
}

function remove({ id, name }, button) {
  if (button.textContent === "Delete") {
    button.textContent = "Delete for good";
    button.onblur = () => (button.textContent = "Delete");
    return answer(`Press it again to delete the voice ${name} from the server.`);
  }
  return attempt(async () => {
    await request(`v1/audio/voices/${encodeURIComponent(id)}`, { method: "DELETE" });
    await loadVoices();
    answer(`The voice ${name} is deleted.`);
    $("voices-title").focus();
  });
}

function forgetSample() {
  sample = null;
  $("preview").hidden = true;
  URL.revokeObjectURL($("preview").src);
}

/** Makes the WAV file to be sent of whatever a recorder or a file gave, unless it cannot be a voice. */
async function takeSample(blob, what) {
  forgetSample();
  const context = new OfflineAudioContext(1, 1, 44100);
  const sound = await context.decodeAudioData(await blob.arrayBuffer()).catch(() => null);
  if (!sound) return answer(`${what} holds no sound that this browser can read.`, { bad: true });
  const { duration, numberOfChannels } = sound;
  if (duration < SHORTEST || duration > LONGEST) {
    return answer(`${what} is ${duration.toFixed(1)} s long; ${SHORTEST} to ${LONGEST} s are needed.`, { bad: true });
  }
  const mean = new Float32Array(sound.length);
  for (let i = 0; i < numberOfChannels; i++) {
    sound.getChannelData(i).forEach((value, at) => (mean[at] += value / numberOfChannels));
  }
  if (mean.every((value) => Math.abs(value) < 0.01)) {
    return answer(`${what} is almost silent; speak closer to the microphone, or check it.`, { bad: true });
  }
  sample = wavOf(Int16Array.from(mean, (value) => clamp(Math.round(value * 32767), -32768, 32767)), 44100);
  Object.assign($("preview"), { src: URL.createObjectURL(sample), hidden: false });
  answer(`${what} is ${duration.toFixed(1)} s long; listen to it before you send it.`);
}

async function record() {
  if (recorder) return recorder.stop?.();
  if (!navigator.mediaDevices) {
    return answer("Browsers open the microphone only over HTTPS or on localhost; choose a file.", { bad: true });
  }
  recorder = {}; // the browser may be asking the person
  const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio: raw }).catch(() => null);
  if (!stream) {
    recorder = null;
    return answer("The browser gives no microphone; connect one and allow its use, or choose a file.", { bad: true });
  }
  player.pause();
  const parts = [], began = performance.now();
  const watch = setInterval(() => {
    const seconds = (performance.now() - began) / 1000;
    // A recorder begins and ends a little later than it is told to.
    const advice = seconds < SHORTEST + 0.5 ? `go on, to ${SHORTEST} s at least` : `enough; ${LONGEST} s at most`;
    tell($("elapsed"), `${seconds.toFixed(1)} s: ${advice}`);
    if (seconds >= LONGEST - 0.3) recorder.stop();
  }, 100);
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = ({ data }) => parts.push(data);
  recorder.onstop = () => {
    clearInterval(watch);
    for (const track of stream.getTracks()) track.stop();
    recorder = null;
    $("record").textContent = "Record again";
    tell($("elapsed"), "");
    takeSample(new Blob(parts), "The recording");
  };
  recorder.start();
  $("record").textContent = "Stop recording";
  answer("Recording; speak now.");
}

function addVoice() {
  const name = $("voice-name"), text = $("voice-text"), consent = $("consent");
  for (const [there, field, sentence] of [
    [name.value.trim(), name, "Give the voice a name."],
    [sample, $("record"), "Record the voice or choose a file."],
    [text.value.trim(), text, "Write down what is said in the recording."],
    [consent.checked, consent, "A voice may be used only with the person's permission; tick the box if you have it."],
  ]) {
    if (!there) return answer(sentence, { bad: true, field });
  }
  const body = new FormData();
  body.append("name", name.value.trim());
  body.append("ref_text", text.value.trim());
  body.append("consent", "true");
  body.append("audio_sample", sample, "voice.wav");
  answer("Sending the voice.");
  return attempt(async () => {
    const voice = await askFor("v1/audio/voices", { method: "POST", body });
    $("voice-form").reset();
    forgetSample();
    await loadVoices();
    answer(`The voice ${voice.name} is there; write [${voice.name}] in a script to let it speak.`);
  });
}

on("record", "click", record);
on("voice-file", "change", ({ target }) => target.files[0] && takeSample(target.files[0], "The file"));
on("voice-example", "click", ({ target: { value } }) => Object.assign($("voice-text"), { value, ariaInvalid: null }));
on("voice-form", "submit", addVoice);

// --- The server's state ----------------------------------------------------------------------------------------------

let server = {}; // as it last described itself
let nextLook = 0;

async function look() {
  if (document.hidden) return;
  const was = server.status;
  let keyless = false;
  try {
    showState(await askFor("ready", { accepted: 503 }));
    if (server.status === "ready" && was !== "ready") await loadVoices();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    showState({ status: "away", message: problem.message });
    keyless = problem.status === 401;
  }
  $("key-button").hidden = !keyless;
  clearTimeout(nextLook); // there are two looks where the page was hidden and seen again during one
  // Where no key was given, asking anew is the person's to do.
  nextLook = keyless ? 0 : setTimeout(look, server.status === "ready" ? 5000 : 2000);
}

function showState(state) {
  server = state;
  const { status, message, model, slots, busy, queued, uploads } = state, ready = status === "ready";
  const waiting = queued ? `${queued} ${queued === 1 ? "waits" : "wait"}` : "nobody waits";
  $("state").dataset.state = status;
  tell($("state-name"), ready ? `Ready: ${model},` : message);
  tell($("state-load"), ready ? `${busy} of ${slots} places busy, ${waiting}.` : "");
  if (!ready) return;
  $("add-voice").hidden = !uploads;
  $("uploads-off").hidden = uploads;
}

document.addEventListener("visibilitychange", look);
on("key-button", "click", look);
showCast();
refresh();
look();
