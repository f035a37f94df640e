"""Write the generated pages where they belong; a test fails as long as they differ from the code."""

from __future__ import annotations

from pathlib import Path

from onnxq.docs.reference import generated_pages

if __name__ == "__main__":
    folder = Path(__file__).parent
    for name, text in generated_pages().items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
