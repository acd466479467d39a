# What __init__.py loads on first use, for type checkers; a test keeps both in step.

from tomoloc.evaluate import evaluate_particles as evaluate_particles
from tomoloc.evaluate import match_particles as match_particles
from tomoloc.io.samples import read_sample as read_sample
from tomoloc.io.structures import read_structure as read_structure
from tomoloc.io.tables import Frame as Frame
from tomoloc.io.tables import read_particles as read_particles
from tomoloc.io.tables import write_particles as write_particles
from tomoloc.io.tilts import read_tilt_series as read_tilt_series
from tomoloc.io.tomograms import read_tomogram as read_tomogram
from tomoloc.io.tomograms import read_volume as read_volume
from tomoloc.io.tomograms import write_volume as write_volume
from tomoloc.localize import estimate_threshold as estimate_threshold
from tomoloc.localize import find_components as find_components
from tomoloc.localize import find_peaks as find_peaks
from tomoloc.pickers.embedding import EmbeddingPicker as EmbeddingPicker
from tomoloc.pickers.embedding import embed_examples as embed_examples
from tomoloc.pickers.pick import Picks as Picks
from tomoloc.pickers.pick import pick as pick
from tomoloc.pickers.template import TemplatePicker as TemplatePicker
from tomoloc.pickers.unsupervised import UnsupervisedPicker as UnsupervisedPicker
from tomoloc.simulate.recipe import read_recipe as read_recipe
from tomoloc.simulate.scene import Simulator as Simulator
from tomoloc.simulate.structures import make_complex as make_complex
from tomoloc.types import CTF as CTF
from tomoloc.types import Particles as Particles
from tomoloc.types import Sample as Sample
from tomoloc.types import ScoreMap as ScoreMap
from tomoloc.types import Structure as Structure
from tomoloc.types import TiltSeries as TiltSeries
from tomoloc.types import Tomogram as Tomogram
from tomoloc.types import Volume as Volume

__version__: str
