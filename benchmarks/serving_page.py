"""Operates the server's page in Chromium as people do, and says what works.

    pip install -r benchmarks/serving_requirements.txt     # and Debian's chromium
    python benchmarks/serving_page.py http://127.0.0.1:8000 screenshots/ --recording me.wav --text "What is said in it."

`benchmarks/serving.py --only page` starts a server and does this. Knows the page's ids and roles and the server's HTTP
interface. Knows no model: any server that speaks will do. Answers that a server seldom gives (busy, broken, a key
wanted) are put in between by the browser. The server has to take new voices and to ask for no key.
"""

import argparse
import base64
import io
import json
import math
import re
import sys
import tempfile
import time
import traceback
import wave
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]
SCRIPT = "[S1] Hello, how are you today? [S2] I am fine, thank you very much."
LONG = SCRIPT + " (laughs) [S1] That is good to hear. Shall we go for a walk along the river? [S2] Gladly."
VOICE = f"Driven {time.time():.0f}"  # no other run's


class Driver:
    """One browser; each check gets a fresh page, whose console and requests are watched."""

    def __init__(self, browser: Browser, base: str, out: Path, recording: Path, text: str, timeout: float = 60):
        self.browser, self.base, self.out, self.timeout = browser, base.rstrip("/"), out, timeout * 1000
        self.recording, self.text = recording, text
        self.complaints: list[str] = []

    def open(self, *, expected: str = "", prepare: Callable[[Page], None] | None = None, **context) -> Page:
        """A page that has loaded.

        Args:
            expected: a pattern of the console's errors that this check brings about itself: a browser reports each
                answer of 400 and more there, and no page can keep it from that.
            prepare: is called with the page before it loads.
            context: of the browser's context, such as `viewport`.
        """
        page = self.browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}).new_page()
        host = urlsplit(self.base).netloc

        def console(message):
            if message.type in ("error", "warning") and not (expected and re.search(expected, message.text)):
                self.complaints.append(f"console {message.type}: {message.text} {message.location}")

        def asked(request):
            parts = urlsplit(request.url)
            if parts.scheme not in ("data", "blob") and parts.netloc != host:
                self.complaints.append(f"a request to another host: {request.url}")

        page.on("console", console)
        page.on("pageerror", lambda error: self.complaints.append(f"not handled: {error}"))
        page.on("request", asked)
        page.set_default_timeout(self.timeout)
        expect.set_options(timeout=self.timeout)
        if prepare:
            prepare(page)
        page.goto(self.base + "/")
        return page

    def ready(self, **arguments) -> Page:
        page = self.open(**arguments)
        expect(page.locator("#state")).to_have_attribute("data-state", "ready")
        expect(page.locator("#voices li").first).to_be_visible()
        return page

    def picture(self, page: Page, name: str) -> None:
        page.screenshot(path=self.out / f"{name}.png", full_page=True)

    def close(self, page: Page) -> None:
        page.context.close()


def events(*said: dict) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in said)


def tone(seconds: float, rate: int = 44100) -> bytes:
    values = (int(9000 * math.sin(2 * math.pi * 220 * i / rate)) for i in range(round(seconds * rate)))
    return b"".join(value.to_bytes(2, "little", signed=True) for value in values)


def wav(seconds: float, rate: int = 22050) -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate)
        file.writeframes(tone(seconds, rate))
    return data.getvalue()


def axe(page: Page, where: str) -> None:
    result = Axe().run(page)
    found = [f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]}" for one in result.response["violations"]]
    assert not found, f"axe, {where}: " + "; ".join(found)


def no_scroll(page: Page) -> None:
    wide, there = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= there, f"The page is {wide} px wide, and {there} px are there."


def done(page: Page) -> float:
    expect(page.locator("#sentence")).to_contain_text(re.compile("^Done: "))
    seconds = float(re.search(r"Done: ([\d.]+) s", page.locator("#sentence").inner_text())[1])
    assert seconds > 0
    return seconds


# --- Checks ----------------------------------------------------------------------------------------------------------


def script_to_sound(driver: Driver) -> None:
    page = driver.ready()
    driver.picture(page, "desktop-light-empty")
    page.get_by_role("textbox", name="Script").fill(LONG)
    expect(page.locator("#cast select")).to_have_count(2)
    page.get_by_role("button", name="Speak").click()
    expect(page.locator("#words [aria-current]")).to_have_count(1)
    lit = page.locator("#words [aria-current]").inner_text()
    page.wait_for_timeout(1200)
    driver.picture(page, "desktop-light-speaking")
    axe(page, "while it speaks")
    seconds = done(page)
    spoken = page.locator("#words .word").all_inner_texts()
    written = re.sub(r"\[[^\]]*\]|\([^)]*\)", " ", LONG).split()
    assert spoken == written, f"{spoken} are the words shown for {written}"
    assert lit in spoken
    expect(page.locator("#play-label")).to_have_text("Play")  # it was heard to its end
    expect(page.locator("#words .word.said")).to_have_count(len(spoken))
    with page.expect_download() as started:
        page.locator("#download").click()
    path = Path(started.value.path())
    with wave.open(str(path)) as file:
        length = file.getnframes() / file.getframerate()
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        assert path.stat().st_size == 44 + 2 * file.getnframes()
    assert abs(length - seconds) < 0.1, f"{length} s in the file, {seconds} s on the page"
    # From a word on, and to a place of the slider.
    page.locator("#words .word").nth(6).click()
    expect(page.locator("#play-label")).to_have_text("Pause")
    expect(page.locator("#words .word").nth(6)).to_have_attribute("aria-current", "true")
    page.locator("#play").click()
    expect(page.locator("#play-label")).to_have_text("Play")
    box = page.locator("#wave").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
    value = float(page.locator("#seek").input_value())
    assert abs(value - seconds / 2) < 0.1, f"A click in the middle leads to {value} of {seconds} s."
    driver.picture(page, "desktop-light-done")
    # What was made.
    item = page.locator("#recordings li")
    expect(item).to_have_count(1)
    expect(item).to_contain_text("seed")
    page.get_by_role("textbox", name="Script").fill("Something else.")
    item.get_by_role("button", name="Use this script again").click()
    expect(page.locator("#script")).to_have_value(LONG)
    item.get_by_role("button", name="Play").click()
    expect(page.locator("#play-label")).to_have_text("Pause")
    with page.expect_download():
        item.get_by_role("button", name="Download").click()
    item.get_by_role("button", name="Delete").click()
    expect(item).to_have_count(0)
    driver.close(page)


def settings(driver: Driver) -> None:
    page = driver.ready()
    page.locator("#settings > summary").click()
    page.locator("#new-seed").uncheck()
    page.locator("#seed").fill("7")
    page.locator("#speed").fill("1.25")
    page.locator("#script").fill(SCRIPT)
    own = page.locator("#cast select").last
    own.select_option("")
    driver.picture(page, "desktop-light-settings")
    axe(page, "settings")
    with page.expect_request("**/v1/audio/dialogue") as asked:
        page.locator("#speak").click()
    order = asked.value.post_data_json
    assert (order["seed"], order["speed"], order["script"]) == (7, 1.25, SCRIPT), order
    assert "temperature" not in order, order
    assert "S2" not in order.get("cast", {}), order
    done(page)
    expect(page.locator("#sentence")).to_contain_text("seed 7")
    page.locator("#speed").fill("9")
    page.locator("#speak").click()
    expect(page.locator("#speed")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#status")).to_contain_text("Speed")
    page.locator("#script").fill("")
    page.locator("#speak").click()
    expect(page.locator("#status")).to_have_text(re.compile("Write a script first"))
    driver.close(page)


def cancel(driver: Driver) -> None:
    page = driver.ready()
    page.locator("#script").fill(" ".join([LONG] * 4))
    page.locator("#speak").click()
    expect(page.locator("#sentence")).to_have_text("Speaking.")
    page.locator("#stop").click()
    expect(page.locator("#sentence")).to_have_text("Stopped; what was made is kept.")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#speak")).to_be_focused()
    expect(page.locator("#recordings li")).to_have_count(1)
    driver.close(page)


def refused(driver: Driver) -> None:
    page = driver.ready(expected="status of 400")
    page.locator("#script").fill("[S1]")
    page.locator("#speak").click()
    expect(page.locator("#status")).to_have_class(re.compile("bad"))
    assert len(page.locator("#sentence").inner_text()) > 10
    expect(page.locator("#recordings li")).to_have_count(0)
    driver.close(page)


def busy(driver: Driver) -> None:
    answers = [429, 503]

    def answer(route):
        if not answers:
            return route.continue_()
        body = json.dumps({"error": {"message": "No room.", "type": "busy", "param": None, "code": None}})
        return route.fulfill(
            status=answers.pop(0), headers={"Retry-After": "2"}, content_type="application/json", body=body
        )

    page = driver.ready(expected="status of (429|503)")
    page.route("**/v1/audio/dialogue", answer)
    page.locator("#speak").click()
    expect(page.locator("#status")).to_have_text("The server is busy; trying again in 2 s.")
    expect(page.locator("#stop")).to_have_text("Cancel")
    expect(page.locator("#status")).to_have_text("The server is not ready; trying again in 1 s.")
    done(page)
    answers += [429]
    page.locator("#speak").click()
    expect(page.locator("#status")).to_contain_text("trying again")
    page.locator("#stop").click()
    expect(page.locator("#sentence")).to_have_text("Cancelled.")
    driver.close(page)


def broken(driver: Driver) -> None:
    sound = base64.b64encode(tone(1.5)).decode()
    start = [
        {"type": "dialogue.queued", "ahead": 2},
        {"type": "dialogue.started", "seed": 5, "sample_rate": 44100},
        {"type": "speech.audio.delta", "audio": sound},
    ]
    word = {"text": "Hello,", "start": 0.1, "end": 0.5, "speaker": "S1", "turn": 0, "confidence": 1}
    late = {"type": "dialogue.words", "words": [word]}
    failure = {"type": "error", "error": {"message": "The model made no speech.", "param": None}}
    page = driver.ready(expected="ERR_|Failed to load")
    for said, sentence in [
        ([*start, late], "The connection to the server broke; what came until then is kept."),
        ([*start, late, failure], "The model made no speech."),
    ]:
        body = events(*said)
        page.route("**/v1/audio/dialogue", partial(Route.fulfill, content_type="text/event-stream", body=body))
        page.locator("#speak").click()
        expect(page.locator("#sentence")).to_have_text(sentence)
        expect(page.locator("#words .word")).to_have_text(["Hello,"])
        page.unroute("**/v1/audio/dialogue")
    expect(page.locator("#recordings li")).to_have_count(2)
    page.route("**/v1/audio/dialogue", lambda route: route.abort())
    page.locator("#speak").click()
    expect(page.locator("#sentence")).to_have_text("The server cannot be reached; does it run?")
    expect(page.locator("#recordings li")).to_have_count(2)
    driver.close(page)


def states(driver: Driver) -> None:
    """The server loads, then is ready and takes no voices."""
    state = {"status": "loading", "message": "The model is being loaded.", "model": "tiny", "slots": 8, "busy": 0}

    def answer(route):
        ready = state["status"] == "ready"
        route.fulfill(status=200 if ready else 503, content_type="application/json", body=json.dumps(state))

    page = driver.open(expected="status of 503", prepare=lambda page: page.route("**/ready", answer))
    expect(page.locator("#state")).to_contain_text("The model is being loaded.")
    state.update(status="ready", uploads=False, rate=44100, busy=3, queued=1, queue_limit=9, tag_voices=False)
    expect(page.locator("#state")).to_have_text("Ready: tiny, 3 of 8 places busy, 1 waits.")
    expect(page.locator("#uploads-off")).to_be_visible()
    expect(page.locator("#add-voice")).to_be_hidden()
    axe(page, "uploads off")
    driver.close(page)


def key(driver: Driver) -> None:
    def answer(route):
        if route.request.headers.get("authorization") == "Bearer right":
            return route.continue_()
        body = json.dumps({"error": {"message": "A key, please.", "type": "auth", "param": None, "code": None}})
        return route.fulfill(status=401, content_type="application/json", body=body)

    page = driver.open(expected="status of 401", prepare=lambda page: page.route("**/v1/**", answer))
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    expect(dialog).to_be_visible()
    axe(page, "key dialog")
    page.keyboard.press("Escape")
    expect(page.locator("#state")).to_contain_text("The server asks for an API key.")
    page.locator("#key-button").click()
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-refused")).to_be_visible()
    driver.picture(page, "key")
    page.get_by_label("API key").fill("right")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    assert page.evaluate("[sessionStorage.key, localStorage.length, document.cookie]")[1:] == [0, ""]
    page.locator("#speak").click()
    done(page)
    driver.close(page)


def voice(driver: Driver) -> None:
    page = driver.ready(permissions=["microphone"])
    status = page.locator("#voice-status")
    listed = page.locator("#voices li", has_text=VOICE)
    page.locator("#add-voice > summary").click()
    save = page.get_by_role("button", name="Add this voice")
    save.click()
    expect(status).to_have_text("Give the voice a name.")
    page.get_by_label("Name", exact=True).fill(VOICE)
    save.click()
    expect(status).to_have_text("Record the voice or choose a file.")
    with tempfile.TemporaryDirectory() as folder:
        for name, data, sentence in [
            ("short.wav", wav(2), "The file is 2.0 s long; 5 to 15 s are needed."),
            ("notes.txt", b"no sound", "The file holds no sound that this browser can read."),
            (
                "good" + driver.recording.suffix,
                driver.recording.read_bytes(),
                "s long; listen to it before you send it.",
            ),
        ]:
            path = Path(folder) / name
            path.write_bytes(data)
            page.get_by_label("Or choose a file").set_input_files(path)
            expect(status).to_contain_text(sentence)
    expect(page.locator("#preview")).to_be_visible()
    save.click()
    expect(status).to_contain_text("Write down what is said")
    page.get_by_role("button", name="Give me something to read aloud").click()
    assert len(page.locator("#voice-text").input_value()) > 40
    page.locator("#voice-text").fill(driver.text)
    save.click()
    expect(status).to_contain_text("permission")
    driver.picture(page, "desktop-light-voice")
    axe(page, "voice form")
    page.get_by_label("I have this person's permission.").check()
    save.click()
    expect(status).to_contain_text(f"The voice {VOICE} is there")
    expect(listed).to_have_count(1)
    # It can be cast by its name.
    page.locator("#script").fill(f"[{VOICE}] Hello.")
    expect(page.locator("#cast option:checked")).to_have_text(VOICE)
    # The microphone; and a name that is taken already may be refused, which is the server's to say.
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.locator("#elapsed")).to_contain_text("go on")
    expect(page.locator("#elapsed")).to_contain_text("enough")
    page.get_by_role("button", name="Stop recording").click()
    expect(status).to_contain_text(re.compile(r"The recording is [5-9]\.\d s long; listen"))
    listed.get_by_role("button", name="Delete").click()
    expect(status).to_contain_text("Press it again")
    listed.get_by_role("button", name="Delete for good").click()
    expect(listed).to_have_count(0)
    driver.close(page)


def phone(driver: Driver) -> None:
    page = driver.ready(viewport={"width": 360, "height": 740}, device_scale_factor=2, has_touch=True, is_mobile=True)
    for summary in page.locator("summary").all():
        summary.click()
    no_scroll(page)
    small = page.evaluate("""() => [...document.querySelectorAll(
        "button, select, summary, textarea, input:not([type=checkbox]), label.check")].filter((one) =>
        one.checkVisibility() && !one.matches(".word") && one.getBoundingClientRect().height < 43.5)
        .map((one) => `${one.tagName} ${one.id} ${one.textContent.slice(0, 20)}`)""")
    assert not small, f"lower than 44 px: {small}"
    driver.picture(page, "phone-open")
    for summary in page.locator("summary").all():
        summary.click()
    page.locator("#script").fill(LONG + " " + "Donaudampfschifffahrtsgesellschaft" * 4)
    page.locator("#speak").tap()
    expect(page.locator("#words [aria-current]")).to_have_count(1)
    page.wait_for_timeout(1500)
    driver.picture(page, "phone-speaking")
    done(page)
    no_scroll(page)
    driver.picture(page, "phone-done")
    axe(page, "phone")
    driver.close(page)


def keyboard(driver: Driver) -> None:
    """From the top of the page to a second hearing, without a mouse."""
    page = driver.ready()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the script")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#script")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("[S1] Good morning to you. [S2] And to you.")
    page.keyboard.press("Control+Enter")
    done(page)
    expect(page.locator("#play-label")).to_have_text("Play")
    page.locator("#add-voice > summary").press("Enter")
    page.locator("#script").focus()
    order = []
    for _ in range(80):
        page.keyboard.press("Tab")
        focused = page.evaluate("""() => { const one = document.activeElement, box = one.getBoundingClientRect();
            return [one.id || one.tagName, getComputedStyle(one.id === 'seek' ? one.parentNode : one).outlineStyle,
                    box.height > 0]; }""")
        if focused[0] == "BODY":
            break
        order.append(focused)
    invisible = [name for name, outline, seen in order if outline == "none" or not seen]
    assert not invisible, f"no focus is seen on {invisible}"
    names = [name for name, _, _ in order]
    wanted = ["cast-0", "speak", "seek", "play", "download", "words", "voice-name", "record", "consent", "save-voice"]
    assert [name for name in names if name in wanted] == wanted, names
    page.locator("#words").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    word = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    expect(page.locator("#words [aria-current]")).to_have_text(word)
    expect(page.locator("#play-label")).to_have_text("Play")
    page.locator("#seek").focus()
    page.keyboard.press("Home")
    assert float(page.locator("#seek").input_value()) == 0
    page.keyboard.press("ArrowRight")
    assert float(page.locator("#seek").input_value()) > 0
    driver.close(page)


def dark(driver: Driver) -> None:
    page = driver.ready(color_scheme="dark", reduced_motion="reduce")
    axe(page, "dark, empty")
    page.locator("#script").fill(LONG)
    page.locator("#speak").click()
    expect(page.locator("#words [aria-current]")).to_have_count(1)
    page.wait_for_timeout(1500)
    axe(page, "dark, while it speaks")
    driver.picture(page, "desktop-dark-speaking")
    done(page)
    driver.close(page)


CHECKS = [script_to_sound, settings, cancel, refused, busy, broken, states, key, voice, phone, keyboard, dark]


def drive(base: str, out: Path, *, recording: Path, text: str, only: Sequence[str] = ()) -> dict[str, str]:
    """Runs the checks.

    Args:
        base: the address of the server.
        out: a folder for pictures of the page.
        recording: that the server takes for a voice; its rate should be 44.1 kHz, which the browser then keeps.
        text: what is said in it.
        only: names of checks; empty for all.

    Returns:
        "works", or what went wrong, by the name of the check.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        driver = Driver(browser, base, out, recording, text)
        for check in CHECKS:
            if only and check.__name__ not in only:
                continue
            driver.complaints = []
            try:
                check(driver)
                assert not driver.complaints, "\n".join(driver.complaints)
                found[check.__name__] = "works"
            except Exception:
                found[check.__name__] = traceback.format_exc() + "\n".join(driver.complaints)
                for context in browser.contexts:
                    for page in context.pages:
                        page.screenshot(path=out / f"failed-{check.__name__}.png", full_page=True)
                    context.close()
        browser.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the address of the server, such as http://127.0.0.1:8000")
    parser.add_argument("out", type=Path, help="a folder for pictures of the page")
    parser.add_argument("--recording", type=Path, required=True, help="5 to 15 s of one speaker")
    parser.add_argument("--text", required=True, help="what is said in it")
    parser.add_argument("--only", nargs="*", default=[], help="names of checks")
    args = parser.parse_args()
    found = drive(args.base, args.out, recording=args.recording, text=args.text, only=args.only)
    for name, verdict in found.items():
        print(f"{name}: {verdict}")
    return int(any(verdict != "works" for verdict in found.values()))


if __name__ == "__main__":
    sys.exit(main())
