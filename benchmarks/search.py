"""Search among the candidates of a thousand tomograms: exact and flat, against vector stores.

    python benchmarks/search.py [--tomograms 1000] [--graph 20] [--folder DIR]

* the index of all embeddings in a folder: seconds to build, to add a tomogram, to open; its size
* 1,000 most similar candidates: seconds from a cold disk, and warm; share of the true 100 found
* the command `tomoloc search` as a whole, in a process of its own
* the same vectors in other number types, and in faiss and usearch where those are installed (pip
  install faiss-cpu usearch). Graphs take long to build: they get the first --graph tomograms only

Vectors are clustered, as those of a trained network are: 300 kinds of particles and broad clouds of
what is none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from tomoloc.features.index import most_similar
from tomoloc.io.embeddings import EmbeddingSource, write_embedding
from tomoloc.io.frames import Frame
from tomoloc.io.indexes import CandidateIndex, open_index, read_index
from tomoloc.io.tables import write_particles
from tomoloc.types import Particles, Volume

CANDIDATES, CHANNELS, KINDS, CLOUDS = 3000, 32, 300, 10
SIZE, SPACING = (960, 928, 300), 10.0
QUERIES, FOUND = 20, 100
SECONDS = 1.0

Search = Callable[[np.ndarray, int], np.ndarray]
"""From directions (k, channels) and n to row numbers (k, n)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tomograms", type=int, default=1000)
    parser.add_argument("--graph", type=int, default=20, help="tomograms that graphs are built of")
    parser.add_argument("--folder", help="of the embeddings, to keep or reuse")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        index, directions = measure_index(folder, arguments.tomograms)
        passed = measure_search(index, directions, folder)
        passed &= measure_command(folder)
        others = Path(temporary) / "others"
        others.mkdir()
        compare(index.vector, directions, folder=others, graph=arguments.graph * CANDIDATES)
    return 0 if passed else 1


def measure_index(folder: Path, n: int) -> tuple[CandidateIndex, np.ndarray]:
    """Write embeddings and build their index; return it, and directions to look for."""
    rng = np.random.default_rng(0)
    kinds = unit(rng.normal(size=(KINDS, CHANNELS)))
    start = time.perf_counter()
    for number in range(n - 1):
        embed(folder, f"TS_{number:04d}", kinds)
    print(f"{n} embeddings of {CANDIDATES} candidates written in {since(start):.1f} s")
    start = time.perf_counter()
    shutil.rmtree(folder / "index", ignore_errors=True)
    shutil.rmtree(folder / f"TS_{n - 1:04d}.zarr", ignore_errors=True)
    open_index(folder)
    built = since(start)
    embed(folder, f"TS_{n - 1:04d}", kinds)
    start = time.perf_counter()
    index = open_index(folder)
    added = since(start)
    start = time.perf_counter()
    open_index(folder)
    print(
        f"index of {len(index) / 1e6:.1f} million: {built:.1f} s to build, {added:.2f} s to add a"
        f" tomogram, {since(start):.3f} s to open; {megabytes(folder / 'index'):.0f} MB"
    )
    return index, unit(kinds[:QUERIES] + 0.05 * rng.normal(size=(QUERIES, CHANNELS)))


def embed(folder: Path, name: str, kinds: np.ndarray) -> None:
    """Write what `tomoloc embed --candidates-only` would, unless it is there."""
    if (folder / f"{name}.zarr").exists():
        return
    rng = np.random.default_rng(list(name.encode()))
    clouds = unit(np.random.default_rng(1).normal(size=(CLOUDS, CHANNELS)))
    particle = rng.uniform(size=(CANDIDATES, 1)) < 0.6
    centers = np.where(
        particle,
        kinds[rng.integers(0, KINDS, CANDIDATES)],
        clouds[rng.integers(0, CLOUDS, CANDIDATES)],
    )
    spread = np.where(particle, 0.12, 0.3)  # cosines to the centre of about 0.83 and 0.5
    vectors = unit(centers + spread * rng.normal(size=centers.shape))
    write_embedding(
        folder / f"{name}.zarr",
        EmbeddingSource(
            tomogram=Path(f"{name}.mrc"),
            name=name,
            size=SIZE,
            voxel_spacing=SPACING,
            contrast="dark",
            model="synthetic:0",
        ),
        embedding=Volume(data=np.zeros((CHANNELS + 1, 1, 1, 1)), voxel_spacing=2 * SPACING),
        finds_centers=True,
        particles=Particles(
            position=rng.uniform(0, 1, (CANDIDATES, 3)) * SIZE * SPACING,
            tomogram=name,
            score=rng.uniform(size=CANDIDATES),
        ),
        vectors=vectors,
        dense=False,
    )


def measure_search(index: CandidateIndex, directions: np.ndarray, folder: Path) -> bool:
    forget(folder / "index")
    start = time.perf_counter()
    most_similar(read_index(folder / "index").vector, directions[:1], n=1000)
    cold = since(start)
    busy = time.process_time()
    most_similar(index.vector, directions[:1], n=1000)
    busy = time.process_time() - busy
    warm = best_of(lambda: most_similar(index.vector, directions[:1], n=1000))
    several = best_of(lambda: most_similar(index.vector, directions, n=1000))
    found = [most_similar(index.vector, d[None], n=FOUND).row for d in directions]
    share = recall(found, exact(index.vector, directions))
    print(
        f"search: {cold:.2f} s cold, {warm:.2f} s warm ({busy:.2f} core-seconds), {several:.2f} s"
        f" for {QUERIES} kinds at once; {share:.4f} of the true {FOUND}"
    )
    limit = f"of at most {SECONDS:g} s"
    passed = [
        verdict(cold <= SECONDS, f"search from a cold disk in {cold:.2f} s {limit}"),
        verdict(warm <= SECONDS, f"search in {warm:.2f} s {limit}"),
        verdict(share == 1, f"{share:.4f} of the {FOUND} most similar are found, of 1"),
    ]
    return all(passed)


def measure_command(folder: Path) -> bool:
    """Time the whole command, from a table of one reference to a table of a thousand."""
    index = read_index(folder / "index")
    reference, hits = folder / "refs.star", folder / "hits.star"
    one = index.particles([7], label="kind", score=[1.0])
    write_particles(one, reference, frames={"TS_0000": Frame("TS_0000", SIZE[::-1], SPACING)})
    run = "import sys; from tomoloc.cli.main import main; sys.exit(main())"
    words = ["search", folder, "--reference", reference, "-o", hits, "--overwrite"]
    forget(folder / "index")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", run, *words], check=True, capture_output=True)
        seconds.append(since(start))
    print(f"tomoloc search: {seconds[0]:.2f} s from a cold disk, then {min(seconds[1:]):.2f} s")
    return hits.is_file()


def compare(vectors: np.ndarray, directions: np.ndarray, *, folder: Path, graph: int) -> None:
    """Print a line for each other way of keeping the same vectors."""
    print(f"\n{'':28}{'million':>8}{'build s':>9}{'MB':>6}{'load s':>8}{'ms':>8}{'recall':>8}")
    single = np.asarray(vectors, dtype=np.float32)
    for dtype in (np.float32, np.float16, np.int8):
        path = folder / f"{np.dtype(dtype).name}.npy"
        show(f"flat, {np.dtype(dtype).name}", single, directions, path, flat(dtype, path))
    with suppress(ModuleNotFoundError):
        import faiss

        flat_index = faiss.IndexFlatIP(CHANNELS)
        half = faiss.IndexScalarQuantizer(
            CHANNELS, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        lists = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(CHANNELS), CHANNELS, 1024, faiss.METRIC_INNER_PRODUCT
        )
        lists.nprobe = 32
        net = faiss.IndexHNSWFlat(CHANNELS, 16, faiss.METRIC_INNER_PRODUCT)
        for name, store, n in (
            ("faiss, flat float32", flat_index, len(single)),
            ("faiss, flat float16", half, len(single)),
            ("faiss, 32 of 1024 lists", lists, len(single)),
            ("faiss, graph", net, graph),
        ):
            path = folder / name
            show(name, single[:n], directions, path, with_faiss(store, path))
    with suppress(ModuleNotFoundError):
        import usearch.index  # noqa: F401

        path = folder / "usearch"
        show("usearch, graph", single[:graph], directions, path, with_usearch(path))


def show(
    name: str,
    vectors: np.ndarray,
    directions: np.ndarray,
    path: Path,
    store: tuple[Callable[[np.ndarray], None], Callable[[], Search]],
) -> None:
    build, load = store
    start = time.perf_counter()
    build(vectors)
    built = since(start)
    forget(path)
    start = time.perf_counter()
    search = load()
    search(directions[:1], FOUND)
    loaded = since(start)
    each = best_of(lambda: search(directions[:1], FOUND))
    found = [search(direction[None], FOUND)[0] for direction in directions]
    share = recall(found, exact(vectors, directions))
    print(
        f"{name:28}{len(vectors) / 1e6:8.2f}{built:9.1f}{megabytes(path):6.0f}{loaded:8.2f}"
        f"{1e3 * each:8.1f}{share:8.4f}",
        flush=True,
    )
    path.unlink()


def flat(dtype: type, path: Path) -> tuple[Callable[[np.ndarray], None], Callable[[], Search]]:
    scale = 127 if dtype is np.int8 else 1

    def build(vectors: np.ndarray) -> None:
        scaled = vectors * scale
        np.save(path, (np.rint(scaled) if dtype is np.int8 else scaled).astype(dtype))

    def load() -> Search:
        stored = np.load(path, mmap_mode="r")

        def search(directions: np.ndarray, n: int) -> np.ndarray:
            hits = most_similar(stored, directions / scale, n=n)
            return hits.row[None]

        return search

    return build, load


def with_faiss(
    store: object, path: Path
) -> tuple[Callable[[np.ndarray], None], Callable[[], Search]]:
    import faiss

    def build(vectors: np.ndarray) -> None:
        store.train(vectors[:: max(1, len(vectors) // 100_000)])
        store.add(vectors)
        faiss.write_index(store, str(path))

    def load() -> Search:
        stored = faiss.read_index(str(path))
        return lambda directions, n: stored.search(directions.astype(np.float32), n)[1]

    return build, load


def with_usearch(path: Path) -> tuple[Callable[[np.ndarray], None], Callable[[], Search]]:
    from usearch.index import Index

    def build(vectors: np.ndarray) -> None:
        store = Index(ndim=CHANNELS, metric="ip", dtype="f16", connectivity=16)
        store.add(np.arange(len(vectors)), vectors)
        store.save(str(path))

    def load() -> Search:
        stored = Index.restore(str(path), view=True)
        stored.expansion_search = 256

        def search(directions: np.ndarray, n: int) -> np.ndarray:
            return stored.search(directions.astype(np.float32), n).keys.reshape(len(directions), -1)

        return search

    return build, load


def exact(vectors: np.ndarray, directions: np.ndarray) -> list[np.ndarray]:
    """Rows of the most similar vectors, in double precision."""
    found = []
    for direction in directions:
        cosine = np.concatenate(
            [vectors[i : i + 100_000] @ direction for i in range(0, len(vectors), 100_000)]
        )
        found.append(np.argpartition(cosine, -FOUND)[-FOUND:])
    return found


def recall(found: list[np.ndarray], truth: list[np.ndarray]) -> float:
    shares = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]
    return float(np.mean(shares))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def forget(path: Path) -> None:
    """Take a file, or those in a folder, out of the system's cache."""
    os.sync()
    for file in [path] if path.is_file() else path.iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def best_of(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        seconds.append(since(start))
    return min(seconds)


def since(start: float) -> float:
    return time.perf_counter() - start


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else path.iterdir()
    return sum(file.stat().st_size for file in files) / 1e6


def verdict(passed: bool, words: str) -> bool:  # noqa: FBT001
    print(f"{'PASS' if passed else 'FAIL'}  {words}")
    return passed


if __name__ == "__main__":
    sys.exit(main())
