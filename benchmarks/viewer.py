"""Time until the page of a circuit can be used, in headless Chromium.

    edgeprune draw CIRCUIT --out page.html
    python benchmarks/viewer.py page.html --rounds 10

The page is opened anew in a new browser each round. Read from the page's own clock, milliseconds since the navigation
began: `interactive`, when every handler is in place and the first picture was handed over to be shown. After that:
`filter`, from a click on a filter to the next frame; `hover`, the same from the pointer's coming upon a node, with the
driver's own cost inside; `pan`, the mean time from frame to frame over 60 frames in which the view moves.
"""

import argparse
import shutil
from pathlib import Path
from statistics import median
from typing import Any

FRAME = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"
PAN = """async () => {
  const stage = document.getElementById("stage"), frames = 60, frame = () => new Promise(requestAnimationFrame);
  const send = (type, x) => stage.dispatchEvent(
    new PointerEvent(type, { clientX: x, clientY: 400, pointerId: 7, bubbles: true }));
  send("pointerdown", 100);
  await frame();
  const start = performance.now();
  for (let step = 1; step <= frames; step++) { send("pointermove", 100 + 5 * step); await frame(); }
  const took = performance.now() - start;
  send("pointerup", 100 + 5 * frames);
  return took / frames;
}"""


def main() -> None:
    """Open, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    found: list[dict[str, float]] = []
    with sync_playwright() as running:
        for _ in range(options.rounds):
            browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            found.append(once(page, options.page))
            browser.close()
            print({name: round(value) for name, value in found[-1].items()}, flush=True)
    for name in found[0]:
        values = sorted(one[name] for one in found)
        print(f"{name}: median {median(values):.0f} ms, from {values[0]:.0f} to {values[-1]:.0f}")


def once(page: Any, path: Path) -> dict[str, float]:
    """Figures of one opening, milliseconds."""
    page.goto(path.resolve().as_uri())
    while not (interactive := page.get_attribute("html", "data-interactive")):
        page.wait_for_timeout(10)
    page.evaluate(FRAME)
    start = page.evaluate("performance.now()")
    page.evaluate("document.querySelector('#kinds input').click()")
    filtered = page.evaluate(FRAME) - start
    start = page.evaluate("performance.now()")
    page.hover(".node.logits", force=True)
    hovered = page.evaluate(FRAME) - start
    return {"interactive": float(interactive), "filter": filtered, "hover": hovered, "pan": page.evaluate(PAN)}


if __name__ == "__main__":
    main()
