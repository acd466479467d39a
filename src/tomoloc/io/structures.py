"""Read atomic structures and density maps, from files or from the Protein Data Bank."""

from __future__ import annotations

import gzip
import http.client
import logging
import os
import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np

from tomoloc.atomic import writing
from tomoloc.io.stored import volume_name
from tomoloc.io.tomograms import MRC_ENDINGS, read_volume
from tomoloc.types import Structure, Volume

__all__ = [
    "StructureSummary",
    "cache_folder",
    "download_structure",
    "read_structure",
    "summarize_structure",
]

logger = logging.getLogger(__name__)

ENDINGS = (".pdb", ".ent", ".cif", ".mmcif")
WWPDB_URL = "https://files.wwpdb.org/pub/pdb/data/structures/divided/mmCIF"
"""Default address of the archive; the environment variable TOMOLOC_PDB_URL names another."""

TIMEOUT_S = 30
HYDROGEN_MASS_FRACTION = 0.07
CARBON = 6
COARSE_ATOM_MASS = 13.2  # mean of the heavy atoms of protein

# Heavy atoms of a residue inside a chain, by its one-letter code.
HEAVY_ATOMS = (4, 5, 6, 6, 7, 7, 7, 8, 8, 8, 8, 8, 9, 9, 9, 10, 11, 11, 12, 14)
AMINO_ACIDS = dict(zip("GASCTPVDNILMEQKHFRYW", HEAVY_ATOMS, strict=True))
NUCLEOTIDES = {"A": 22, "C": 20, "G": 23, "U": 20, "T": 20, "I": 22}
UNKNOWN_AMINO_ACID, UNKNOWN_NUCLEOTIDE = 8, 21


def read_structure(
    source: str | Path, *, assembly: bool = False, voxel_spacing: float | None = None
) -> Structure | Volume:
    """Read an atomic structure or a density map.

    Of an atomic structure, the first model and the first alternate conformation are taken, without
    waters and hydrogens (few entries have them). A residue that is given by its CA or P alone
    becomes as many carbon atoms there as it has heavy atoms.

    Parameters
    ----------
    source : path or str
        A .pdb, .ent, .cif or .mmcif file, plain or gzipped; a density map, as `read_volume`
        takes it; or `pdb:` and a code such as `pdb:1bxn`, which is downloaded once into
        `cache_folder()`.
    assembly : bool
        Whether to build the first biological assembly that the file states.
    voxel_spacing : float, optional
        Of a density map whose header states none, or a wrong one.

    Returns
    -------
    Structure or Volume
        Named after the file or the code. `weight` is the occupancy of each atom relative to the
        fullest of its chain. The copies of chain A in an assembly are A1, A2 and so on.

    Raises
    ------
    ValueError
        If the file is of another kind, damaged, without atoms, or states no assembly.
    OSError
        If it cannot be read or downloaded.
    """
    if not _is_code(source) and _ending(source) not in ENDINGS:
        if _ending(source) not in MRC_ENDINGS:
            code = f"; did you mean pdb:{source}?" if _looks_like_code(source) else ""
            raise ValueError(
                f"{source}: expected a structure ({', '.join(ENDINGS)}, also .gz), a density map"
                f" ({', '.join(MRC_ENDINGS)}) or a code such as pdb:1bxn{code}"
            )
        if assembly:
            raise ValueError(f"{source}: a density map has no biological assembly to build")
        return read_volume(source, voxel_spacing=voxel_spacing)
    path, name = _locate(source)
    return _make_structure(_read_model(path, assembly=assembly), name=name, path=path)


@dataclass(frozen=True, kw_only=True)
class StructureSummary:
    """What a structure file holds: of its first model, without waters.

    `n_chains` counts those of protein or nucleic acid, `n_coarse` the residues given by one atom.
    """

    structure: Structure
    mass_kda: float
    n_models: int
    n_chains: int
    n_residues: int
    n_coarse: int
    assemblies: tuple[str, ...]


def summarize_structure(source: str | Path) -> StructureSummary:
    """Read a structure and count its parts.

    Parameters
    ----------
    source : path or str
        A structure file or a code, as for `read_structure`.

    Returns
    -------
    StructureSummary
        Its mass has hydrogens added as 7 % of the whole, which holds for protein.

    Raises
    ------
    ValueError, OSError
        As for `read_structure`.
    """
    import gemmi

    path, name = _locate(source)
    file = _parse(path)
    structure = _make_structure(file[0], name=name, path=path)
    residues = [residue for chain in file[0] for residue in chain if not residue.is_water()]
    weights = np.array([gemmi.Element(int(z)).weight for z in range(119)])
    weight = np.asarray(structure.weight)
    each = np.where(weight > 1, COARSE_ATOM_MASS, weights[structure.atomic_number])
    heavy = float(weight @ each)
    return StructureSummary(
        structure=structure,
        mass_kda=heavy / (1 - HYDROGEN_MASS_FRACTION) / 1000,
        n_models=len(file),
        n_chains=sum(any(_in_polymer(residue) for residue in chain) for chain in file[0]),
        n_residues=len(residues),
        n_coarse=sum(_heavy_atoms(residue) is not None for residue in residues),
        assemblies=tuple(assembly.name for assembly in file.assemblies),
    )


def cache_folder() -> Path:
    """Return where downloads are kept: TOMOLOC_CACHE, or the user's cache folder."""
    chosen = os.environ.get("TOMOLOC_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tomoloc"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    return Path(os.environ.get(variable) or Path.home() / ".cache") / "tomoloc"


def download_structure(
    code: str, *, folder: str | Path | None = None, url: str | None = None
) -> Path:
    """Fetch an entry of the Protein Data Bank as mmCIF, unless it is there already.

    Parameters
    ----------
    code : str
        Four characters, such as 1bxn.
    folder : path, optional
        Where to keep it; `cache_folder()` by default.
    url : str, optional
        Address of the archive; TOMOLOC_PDB_URL or the wwPDB's by default.

    Returns
    -------
    Path
        Of the gzipped mmCIF file.

    Raises
    ------
    ValueError
        If the code is none, or the archive has no such entry.
    OSError
        If the archive cannot be reached or sends no whole file; nothing is kept then.
    """
    code = code.strip().lower().removeprefix("pdb_0000")
    if not re.fullmatch(r"[0-9][a-z0-9]{3}", code):
        raise ValueError(f"expected a code of four characters such as pdb:1bxn; got pdb:{code}")
    target = Path(folder or cache_folder()) / "pdb" / f"{code}.cif.gz"
    if target.exists():
        return target
    base = (url or os.environ.get("TOMOLOC_PDB_URL") or WWPDB_URL).rstrip("/")
    address = f"{base}/{code[1:3]}/{code}.cif.gz"
    logger.info("downloading %s", address)
    try:
        with urlopen(address, timeout=TIMEOUT_S) as response:
            content = response.read()
        gzip.decompress(content)
    except HTTPError as error:
        error.close()
        if error.code == 404:
            raise ValueError(f"the Protein Data Bank has no entry {code} ({address})") from error
        raise OSError(f"{address}: the server answers {error.code} {error.reason}") from error
    except (http.client.HTTPException, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(f"{address} did not arrive whole; try again") from error
    except OSError as error:
        raise OSError(
            f"cannot reach {address} ({getattr(error, 'reason', error)}); without a network, give"
            f" a structure file, or put the entry at {target}"
        ) from error
    with writing(target) as draft:
        draft.write_bytes(content)
    return target


def _is_code(source: str | Path) -> bool:
    return str(source).lower().startswith("pdb:")


def _looks_like_code(source: str | Path) -> bool:
    return re.fullmatch(r"[1-9][A-Za-z0-9]{3}", Path(source).name) is not None


def _ending(source: str | Path) -> str:
    return Path(Path(source).name.removesuffix(".gz")).suffix.lower()


def _locate(source: str | Path) -> tuple[Path, str]:
    if _is_code(source):
        path = download_structure(str(source)[4:])
        return path, volume_name(path)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return path, volume_name(path)


def _parse(path: Path) -> Any:
    import gemmi

    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path} is empty; expected a structure")
    form = gemmi.CoorFormat.Pdb if _ending(path) in (".pdb", ".ent") else gemmi.CoorFormat.Mmcif
    try:
        if content.startswith(b"\x1f\x8b"):  # gemmi would read a truncated archive without a word
            content = gzip.decompress(content)
        # Old entries have Latin letters in their remarks, which count for nothing here.
        content = content.decode("latin-1").encode("ascii", "replace")
        file = gemmi.read_structure_string(content, format=form)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a structure file, or is damaged: {error}") from error
    if len(file) == 0:
        raise ValueError(f"{path} holds no atoms")
    file.setup_entities()
    return file


def _read_model(path: Path, *, assembly: bool) -> Any:
    import gemmi

    file = _parse(path)
    if not assembly:
        return file[0]
    if not file.assemblies:
        raise ValueError(f"{path} states no biological assembly; read it without")
    return gemmi.make_assembly(file.assemblies[0], file[0], gemmi.HowToNameCopiedChain.AddNumber)


def _make_structure(model: Any, *, name: str, path: Path) -> Structure:
    position, number, weight, chains, nodes = [], [], [], [], []
    for chain in model:
        # In a crystal, a chain may be there in half of the cells; a particle has it whole.
        fullest = min(1.0, max((atom.occ for r in chain for atom in r), default=1.0))
        for residue in chain.first_conformer():
            if residue.is_water():
                continue
            heavy = _heavy_atoms(residue)
            node = _node(residue)
            for atom in residue.first_conformer():
                if atom.is_hydrogen() or atom.element.atomic_number == 0:
                    continue
                position.append(atom.pos.tolist())
                number.append(atom.element.atomic_number if heavy is None else CARBON)
                # An atom that was modelled without being seen has occupancy 0 but is there.
                whole = atom.has_altloc() or not 0 < atom.occ <= fullest
                weight.append((heavy or 1) * (1.0 if whole else atom.occ / fullest))
                chains.append(chain.name)
                nodes.append(atom.name == node)
    if not position:
        raise ValueError(f"{path} holds no atoms but water and hydrogen")
    return Structure(
        position=np.array(position),
        atomic_number=np.array(number),
        weight=np.array(weight),
        name=name,
        chain=np.array(chains, dtype=np.str_),
        is_node=np.array(nodes, dtype=bool),
    )


def _in_polymer(residue: Any) -> bool:
    import gemmi

    known = gemmi.find_tabulated_residue(residue.name)
    return known.is_amino_acid() or known.is_nucleic_acid()


def _heavy_atoms(residue: Any) -> int | None:
    """Return how many heavy atoms a lone CA or P stands for; None for an ordinary residue."""
    import gemmi

    names = {atom.name for atom in residue}
    if len(names) != 1:
        return None
    known = gemmi.find_tabulated_residue(residue.name)
    letter = known.one_letter_code.upper()
    (name,) = names
    # A calcium ion is a residue of one atom CA, too.
    if name == "CA" and residue[0].element != gemmi.Element("Ca"):
        return AMINO_ACIDS.get(letter, UNKNOWN_AMINO_ACID)
    if name == "P":
        return NUCLEOTIDES.get(letter, UNKNOWN_NUCLEOTIDE)
    return None


def _node(residue: Any) -> str | None:
    """Name the atom that stands for its residue in an elastic network; None for other matter."""
    import gemmi

    elements = {atom.name: atom.element for atom in residue}
    if elements.get("CA") == gemmi.Element("C"):
        return "CA"
    # Lipids and phosphate ions have a P, too, but no sugar.
    in_chain = "C4'" in elements or "C4*" in elements or _heavy_atoms(residue) is not None
    return "P" if "P" in elements and in_chain else None
