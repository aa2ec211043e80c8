"""`make picture`: the demo's overview as the picture of README.md and docs/index.md, in few colours."""

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
picture = Image.open(ROOT / "figures" / "overview.png").convert("RGB")
target = ROOT / "docs" / "_static" / "demo.png"
picture.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)
print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")
