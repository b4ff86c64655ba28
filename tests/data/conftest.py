"""Small synthetic data sets in the layouts of the real ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Bytes of an image file whose pixels are drawn from a seed."""

    def make(
        seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB", form: str = "PNG"
    ) -> bytes:
        shape = size[::-1] if mode == "L" else (*size[::-1], 3)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        return buffer.getvalue()

    return make


@pytest.fixture(params=["folder", "zip"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Mapping[str, bytes]], str]:
    """Write files into a folder, and then into a zip."""

    def write(files: Mapping[str, bytes], name: str = "files") -> str:
        if request.param == "folder":
            for path, data in files.items():
                target = tmp_path / name / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            return str(tmp_path / name)
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for path, data in files.items():
                archive.writestr(path, data)
        return str(tmp_path / f"{name}.zip")

    return write


@pytest.fixture
def real() -> Callable[[str], str]:
    """Path of a file of the shared research data, or skip."""

    def path(name: str) -> str:
        file = Path(__file__).resolve().parents[3] / "shared" / "data" / name
        if not file.exists():
            pytest.skip(f"{name} is not in ../shared/data")
        return str(file)

    return path
