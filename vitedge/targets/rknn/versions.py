"""Which versions of driver, runtime and toolkit do not fit each other, as far as it is known from users' reports.

The vendor publishes no table (airockchip/rknn-toolkit2#405 and #465 asked for one), but its release notes name a driver
beside each runtime. Known besides: librknnrt 1.3.0 and 1.4.0 refuse what a toolkit of 2.x writes, "Invalid RKNN model
version 6" (#254, #281); driver 0.9.3 fails to submit where 0.9.6 does not (#38), and 0.9.2 does not carry librknnrt
2.3.2 (LuckfoxTECH/luckfox-pico#328); a model of toolkit 2.3.0 crashed under librknnrt 2.3.2 (jaylfc/taOS#42).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

# As `strings librknnrt.so` shows it: "librknnrt version: 2.3.2 (429f97ae6b@2025-04-09T09:09:27)".
_VERSION = re.compile(rb"librknnrt version: (\d+\.\d+\.\d+[a-z0-9]*)")
OLDEST_RUNTIME = (1, 5)  # the first release after those that are known to refuse
# Runtime from which on -> the driver that the vendor's release notes name beside it (docs/cn/Common/NPU of its SDKs).
DRIVERS = {(1, 5, 2): (0, 9, 2), (1, 6, 0): (0, 9, 3), (2, 0, 0): (0, 9, 6)}


def library_version(path: Path) -> str:
    """The version that a librknnrt.so says of itself, or an empty string."""
    try:
        found = _VERSION.search(path.read_bytes())
    except OSError:
        return ""
    return found[1].decode() if found else ""


def numbers(version: str) -> tuple[int, ...]:
    """The first number with points in a text: "API: 2.3.2 (429f...)" -> (2, 3, 2); () where there is none."""
    match = re.search(r"\d+(?:\.\d+)+", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def misfits(versions: Mapping[str, str], toolkit: str = "") -> list[str]:
    """Sentences on pairs that do not fit.

    versions: "driver", "runtime", "rknn-toolkit-lite2" as the board has them; what is not known is left out.
    toolkit: version of rknn-toolkit2 that built an artifact; empty for none.
    """
    driver, runtime = numbers(versions.get("driver", "")), numbers(versions.get("runtime", ""))
    lite = numbers(versions.get("rknn-toolkit-lite2", ""))
    found = []
    if runtime and runtime < OLDEST_RUNTIME:
        found.append(f"librknnrt {_text(runtime)} refuses what toolkits of 2.x build (rknn-toolkit2#254, #281).")
    beside = max((own for since, own in DRIVERS.items() if since <= runtime), default=())
    if driver and driver < beside:
        found.append(
            f"The driver {_text(driver)} is older than {_text(beside)}, which librknnrt {_text(runtime)} was published "
            "with: such pairs are known to fail (rknn-toolkit2#38)."
        )
    if lite and runtime and lite[:2] != runtime[:2]:
        found.append(f"rknn-toolkit-lite2 is {_text(lite)}, librknnrt {_text(runtime)}: they are published together.")
    if toolkit and runtime and numbers(toolkit) != runtime:
        found.append(f"It was built by rknn-toolkit2 {toolkit}, and librknnrt here is {_text(runtime)}.")
    return found


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
