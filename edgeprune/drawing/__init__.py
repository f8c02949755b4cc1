"""Drawings of circuits: one layout as plain numbers; an image, DOT or a page to look around in made from it."""

from edgeprune.drawing.dot import write_dot as write_dot
from edgeprune.drawing.edges import MAX_EDGES as MAX_EDGES
from edgeprune.drawing.edges import NamedCircuit as NamedCircuit
from edgeprune.drawing.edges import on_paths as on_paths
from edgeprune.drawing.edges import strongest_edges as strongest_edges
from edgeprune.drawing.edges import without_roles as without_roles
from edgeprune.drawing.image import FORMATS as FORMATS
from edgeprune.drawing.image import draw_image as draw_image
from edgeprune.drawing.viewer import viewer_html as viewer_html
from edgeprune.drawing.viewer import write_viewer as write_viewer
