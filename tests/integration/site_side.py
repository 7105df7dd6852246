"""Run by the interpreter that has playwright: open every page of a site from disk, use it, and write what was seen.

    python site_side.py SITE FEATURE SEEN

SITE is the folder of the site, FEATURE the address of a feature behind feature.html#, SEEN the JSON file to write;
screenshots go beside it.
"""

import json
import sys
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

PAGES = {"wide": 1280, "narrow": 390}
ROWS = "#rows tbody tr:not(.gap)"


def look(page: Page, address: str, complaints: list[str]) -> dict:
    """What a page says of itself; complaints are those of its console."""
    complaints.clear()
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_function("'ready' in document.documentElement.dataset")
    seen = {
        "title": page.title(),
        "complaints": list(complaints),
        "overflow": page.evaluate("document.documentElement.scrollWidth - innerWidth"),
    }
    name = address.rpartition(".html")[0].rpartition("/")[2] + address.partition("#")[2].replace("/", "-")
    page.screenshot(path=SHOTS / f"{name}-{page.viewport_size['width']}.png", full_page=True)
    violations = Axe().run(page).response["violations"]
    seen["axe"] = [v["id"] for v in violations if v["impact"] in ("serious", "critical")]
    return seen


def explore(page: Page, site: str) -> dict:
    """The explorer used by keyboard and mouse."""
    page.goto(f"{site}/features.html")
    page.wait_for_function("'ready' in document.documentElement.dataset")
    first = lambda column: page.locator(ROWS).first.locator("td").nth(column).inner_text()  # noqa: E731
    seen = {"status": page.inner_text("#status"), "rows_drawn": page.locator(ROWS).count(), "best_score": first(4)}
    page.locator('th[data-column="density"] button').focus()
    page.keyboard.press("Enter")
    seen |= {"densest": first(2), "sorted": page.get_attribute('th[data-column="density"]', "aria-sort")}
    page.keyboard.press("Enter")
    seen["sparsest"] = first(2)
    page.evaluate("document.getElementById('rows').scrollTop = 1e9")
    page.wait_for_timeout(200)
    seen["last_row"] = page.locator(ROWS).last.get_attribute("aria-rowindex")
    page.fill("#search", "planted")
    seen["found"] = page.inner_text("#status")
    page.locator(ROWS).first.locator("a").click()
    page.wait_for_function("document.title.startsWith('Feature ')")
    seen["opened"] = page.title()
    return seen


def printed(page: Page, site: str) -> dict:
    """The paper's colour, of a page that is dark on the screen, and the screen's after it was printed."""
    page.goto(f"{site}/index.html")
    page.wait_for_function("'ready' in document.documentElement.dataset")
    colour = "getComputedStyle(document.body).backgroundColor"
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.paper = {colour}; }})")
    page.pdf(path=SHOTS / "printed.pdf", format="A4")
    return {"paper": page.evaluate("window.paper"), "screen": page.evaluate(colour)}


SITE, SEEN, *FEATURES = sys.argv[1:]
SHOTS = Path(SEEN).parent
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
    result = {}
    for size, width in PAGES.items():
        for theme in ("light", "dark"):
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme).new_page()
            page.set_default_timeout(180_000)
            complaints: list[str] = []
            page.on(
                "console",
                lambda message, found=complaints: found.append(message.text) if message.type == "error" else None,
            )
            page.on("pageerror", lambda error, found=complaints: found.append(str(error)))
            names = [file.name for file in sorted(Path(SITE).glob("*.html")) if file.name != "feature.html"]
            for name in [*names, *(f"feature.html#{feature}" for feature in FEATURES)]:
                result[f"{name} {size} {theme}"] = look(page, f"file://{SITE}/{name}", complaints)
    result["explorer"] = explore(page, f"file://{SITE}")
    result["printed"] = printed(page, f"file://{SITE}")
    browser.close()
Path(SEEN).write_text(json.dumps(result))
