"""What tests of the explorer read off its page."""

from __future__ import annotations

import base64
import io
import re
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image


def name_of(z: np.ndarray) -> str:
    """A latent as the page's address has it."""
    return "z:" + base64.urlsafe_b64encode(z.astype("<f4").tobytes()).decode().rstrip("=")


def latent(name: str) -> np.ndarray:
    """The latent of such a name."""
    text = name.removeprefix("z:")
    return np.frombuffer(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "<f4")


def visit(tab: Any, address: str) -> None:
    """Open an address and wait until its current point is decoded."""
    tab.goto(address)
    tab.locator("html[data-shown]").wait_for(state="attached")


def wait_shown(tab: Any, z: np.ndarray) -> None:
    """Wait until the page shows this point."""
    tab.locator(f'html[data-shown="{name_of(z)[:80]}"]').wait_for(state="attached")


def address_of(tab: Any) -> dict[str, str]:
    """What the address says, once the page has written it."""
    found = re.findall(r"[#&](\w+)=([^&]*)", tab.url)
    return {key: unquote(value) for key, value in found}


def picture(tab: Any, selector: str = "#picture img") -> np.ndarray:
    """The pixels of an image of the page."""
    source = tab.locator(selector).first.get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def current(tab: Any) -> np.ndarray:
    """The page's current point, once it is decoded."""
    z = np.array(tab.evaluate("import('./static/app.js').then(({app}) => [...app.z])"), np.float32)
    wait_shown(tab, z)
    return z
