"""Atomic structures, coarse ones, assemblies, density maps and downloads."""

from __future__ import annotations

import csv
import gzip
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tomoloc.io.structures import (
    cache_folder,
    download_structure,
    read_structure,
    summarize_structure,
)
from tomoloc.io.tomograms import write_volume
from tomoloc.types import Structure, Volume


def atom(serial, name, residue, number, position, *, element, altloc=" ", occupancy=1.0, chain="A"):
    """Lay out one line after the wwPDB's format 3.3."""
    record = "HETATM" if residue in ("HOH", "CA") else "ATOM  "
    x, y, z = position
    return (
        f"{record}{serial:5d} {name:<4}{altloc}{residue:>3} {chain}{number:4d}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}{20.0:6.2f}          {element:>2}"
    )


ALANINE = [
    atom(1, " N", "ALA", 1, (1, 2, 3), element="N"),
    atom(2, " CA", "ALA", 1, (2, 2, 3), element="C"),
    atom(3, " C", "ALA", 1, (3, 2, 3), element="C"),
    atom(4, " O", "ALA", 1, (3, 3, 3), element="O", occupancy=0.5),
    atom(5, " CB", "ALA", 1, (2, 1, 3), element="C", altloc="A", occupancy=0.6),
    atom(6, " CB", "ALA", 1, (2, 0, 3), element="C", altloc="B", occupancy=0.4),
    atom(7, " HA", "ALA", 1, (2, 2, 4), element="H"),
    atom(8, " OXT", "ALA", 1, (4, 2, 3), element="O", occupancy=0.0),
    atom(9, " O", "HOH", 2, (9, 9, 9), element="O"),
    atom(10, "CA", "CA", 3, (7, 7, 7), element="CA"),
]
COARSE = [
    atom(1, " CA", "TRP", 1, (0, 0, 0), element="C"),
    atom(2, " CA", "GLY", 2, (3.8, 0, 0), element="C"),
    atom(3, " CA", "UNK", 3, (7.6, 0, 0), element="C"),
    atom(4, " P", "G", 4, (0, 5, 0), element="P", chain="B"),
    atom(5, " P", "DT", 5, (0, 9, 0), element="P", chain="B"),
]
ASSEMBLY = """\
REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000       10.00000
REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000        0.00000
REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000       20.00000
"""


def pdb(lines, head=""):
    return head + "\n".join([*lines, "END", ""])


@pytest.fixture
def alanine(tmp_path):
    path = tmp_path / "1ala.pdb"
    path.write_text(pdb(ALANINE))
    return path


@pytest.mark.parametrize("form", ["pdb", "ent", "pdb.gz", "cif", "cif.gz", "mmcif"])
def test_what_is_kept(tmp_path, alanine, form):
    path = tmp_path / f"1xyz.{form}"
    content = alanine.read_text()
    if "cif" in form:
        import gemmi

        content = gemmi.read_structure(str(alanine)).make_mmcif_document().as_string()
    path.write_bytes(gzip.compress(content.encode()) if form.endswith("gz") else content.encode())
    structure = read_structure(path)
    assert isinstance(structure, Structure)
    assert structure.name == "1xyz"
    # Nitrogen, CA, C, O, the first CB, OXT and the calcium ion; no water, no hydrogen.
    np.testing.assert_array_equal(structure.atomic_number, [7, 6, 6, 8, 6, 8, 20])
    np.testing.assert_allclose(structure.weight, [1, 1, 1, 0.5, 1, 1, 1])
    np.testing.assert_allclose(structure.position[4], [2, 1, 3])
    np.testing.assert_allclose(structure.position[-1], [7, 7, 7])
    # The calcium ion, which is called CA, too, is no residue.
    np.testing.assert_array_equal(structure.is_node, [False, True, *[False] * 5])
    np.testing.assert_array_equal(structure.chain, "A")


def test_a_chain_that_half_of_the_cells_hold_is_whole(tmp_path):
    half = [
        atom(1, " N", "ALA", 1, (1, 2, 3), element="N", occupancy=0.5),
        atom(2, " CA", "ALA", 1, (2, 2, 3), element="C", occupancy=0.5),
        atom(3, " C", "ALA", 1, (3, 2, 3), element="C", occupancy=0.25),
        atom(4, " N", "ALA", 1, (9, 2, 3), element="N", chain="B"),
        atom(5, " CA", "ALA", 1, (9, 3, 3), element="C", chain="B", occupancy=0.25),
    ]
    path = tmp_path / "half.pdb"
    path.write_text(pdb(half))
    np.testing.assert_allclose(read_structure(path).weight, [1, 1, 0.5, 1, 0.25])


def test_first_model_only(tmp_path):
    path = tmp_path / "nmr.pdb"
    models = [f"MODEL     {i}\n" + "\n".join(ALANINE[:4]) + "\nENDMDL\n" for i in (1, 2, 3)]
    path.write_text("".join(models) + "END\n")
    assert len(read_structure(path).position) == 4
    assert summarize_structure(path).n_models == 3


def test_lone_ca_and_p_stand_for_their_residue(tmp_path):
    path = tmp_path / "coarse.pdb"
    path.write_text(pdb(COARSE))
    structure = read_structure(path)
    np.testing.assert_array_equal(structure.weight, [14, 4, 8, 23, 20])
    np.testing.assert_array_equal(structure.atomic_number, 6)
    assert structure.is_node.all()
    np.testing.assert_array_equal(structure.chain, ["A", "A", "A", "B", "B"])
    summary = summarize_structure(path)
    assert (summary.n_coarse, summary.n_residues, summary.n_chains) == (5, 5, 2)


def test_nodes_of_nucleotides_but_not_of_phosphate_or_lipids(tmp_path):
    atoms = [
        atom(1, " P", "G", 1, (0, 0, 0), element="P"),
        atom(2, " C4'", "G", 1, (3, 0, 0), element="C"),
        atom(3, " P", "PO4", 2, (9, 9, 9), element="P"),
        atom(4, " O1", "PO4", 2, (9, 9, 7), element="O"),
    ]
    path = tmp_path / "rna.pdb"
    path.write_text(pdb(atoms))
    np.testing.assert_array_equal(read_structure(path).is_node, [True, False, False, False])


def test_assembly_on_request(tmp_path, alanine):
    path = tmp_path / "twice.pdb"
    path.write_text(pdb(ALANINE, ASSEMBLY))
    one, two = read_structure(path), read_structure(path, assembly=True)
    assert len(two.position) == 2 * len(one.position)
    np.testing.assert_array_equal(two.chain, np.repeat(["A1", "A2"], len(one.position)))
    turned = one.position * [-1, -1, 1] + [10, 0, 20]
    np.testing.assert_allclose(two.position, np.concatenate([one.position, turned]), atol=1e-6)
    assert summarize_structure(path).assemblies == ("1",)
    with pytest.raises(ValueError, match="states no biological assembly"):
        read_structure(alanine, assembly=True)


def test_density_map(tmp_path, rng):
    data = rng.normal(size=(4, 5, 6)).astype(np.float32)
    write_volume(Volume(data=data, voxel_spacing=7.84), tmp_path / "ribosome.map")
    volume = read_structure(tmp_path / "ribosome.map")
    assert isinstance(volume, Volume)
    assert (volume.name, volume.voxel_spacing) == ("ribosome", 7.84)
    with pytest.raises(ValueError, match="no biological assembly"):
        read_structure(tmp_path / "ribosome.map", assembly=True)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pdb", "nothing of use\n", "no atoms"),
        ("a.cif", "nothing of use\n", "not a structure file"),
        ("a.cif", "", "is empty"),
        ("a.pdb", pdb(ALANINE[8:9]), "no atoms but water"),
        ("a.docx", "x", "expected a structure"),
    ],
)
def test_what_is_no_structure(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_structure(path)


def test_damaged_gzip_and_missing_file(tmp_path, alanine):
    path = tmp_path / "a.pdb.gz"
    path.write_bytes(gzip.compress(alanine.read_bytes())[:-30])
    with pytest.raises(ValueError, match="damaged"):
        read_structure(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_structure(tmp_path / "none.pdb")


class Archive(BaseHTTPRequestHandler):
    """A tiny wwPDB: serves /<middle>/<code>.cif.gz from `entries`; logs nothing."""

    entries: dict[str, bytes]

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.entries.get(self.path)
        if content is None:
            self.send_error(404 if "9xxx" in self.path else 503)
            return
        self.send_response(200)
        claimed = len(content) + (1000 if "2cut" in self.path else 0)
        self.send_header("Content-Length", str(claimed))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def archive(alanine, monkeypatch, tmp_path):
    import gemmi

    entry = gemmi.read_structure(str(alanine)).make_mmcif_document().as_string()
    packed = gzip.compress(entry.encode())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    server.asked = []
    server.entries = {
        "/bx/1bxn.cif.gz": packed,
        "/cu/2cut.cif.gz": packed,
        "/ba/3bad.cif.gz": packed[:-20],
        "/ba/4bad.cif.gz": b"<html>no archive</html>",
    }
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("TOMOLOC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOMOLOC_PDB_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("source", ["pdb:1bxn", "PDB:1BXN", "pdb:pdb_00001bxn"])
def test_download_once(archive, tmp_path, source):
    first, second = read_structure(source), read_structure(source)
    assert first.name == second.name == "1bxn"
    assert len(first.position) == 7
    assert archive.asked == ["/bx/1bxn.cif.gz"]
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept == [tmp_path / "cache" / "pdb" / "1bxn.cif.gz"]


def test_address_and_folder_can_be_given(archive, tmp_path, monkeypatch):
    monkeypatch.delenv("TOMOLOC_PDB_URL")
    url = f"http://127.0.0.1:{archive.server_port}/"
    path = download_structure("1bxn", folder=tmp_path / "here", url=url)
    assert path == tmp_path / "here" / "pdb" / "1bxn.cif.gz"


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("9xxx", ValueError, "has no entry 9xxx"),
        ("5off", OSError, "answers 503"),
        ("2cut", OSError, "did not arrive whole"),
        ("3bad", OSError, "did not arrive whole"),
        ("4bad", OSError, "did not arrive whole"),
        ("ribosome", ValueError, "code of four characters"),
        ("../x", ValueError, "code of four characters"),
    ],
)
def test_failed_downloads_leave_nothing(archive, tmp_path, code, error, said):
    with pytest.raises(error, match=said):
        read_structure(f"pdb:{code}")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_without_a_network(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(OSError, match=r"cannot reach .*give a structure file, or put the entry at"):
        download_structure("1bxn", folder=tmp_path, url=url)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TOMOLOC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TOMOLOC_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tomoloc"


def test_real_masses(shared):
    with (shared / "structures/index.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows[::60]:
        summary = summarize_structure(shared / "structures" / row["file"])
        assert summary.mass_kda == pytest.approx(float(row["kda"]), rel=0.06), row["id"]
        assert summary.n_chains == int(row["nchains"]), row["id"]


def test_real_assemblies(shared):
    folder = shared / "structures/assemblies"
    one = read_structure(folder / "2om3.pdb.gz")
    virus = read_structure(folder / "2om3.pdb.gz", assembly=True)
    assert len(virus.position) == 49 * len(one.position)
    capsid = summarize_structure(folder / "2buk_asm1_ca.cif.gz")
    assert capsid.n_coarse == capsid.n_residues == 60 * 184
    assert 60 * 18 < capsid.mass_kda < 60 * 22  # satellite tobacco necrosis virus: 60 x 21 kDa
