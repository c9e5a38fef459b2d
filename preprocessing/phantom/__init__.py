"""Synthetic X-ray films of hands, with exact ground truth, in MURA's tree: data to start with.

A hand is a skeleton in millimetres and three dimensions: x towards the thumb, y towards the fingertips, z towards the
back of the hand. It is posed, turned, projected, and weighed along every ray: bone is a tube of cortex around spongy
bone, so that its bright edges come from geometry; soft tissue is an inflated outline. The film then darkens with
exposure, gamma, scatter and noise.

No shortcut to the label: whatever is no finding (anatomy, pose, view, carrier, marker, exposure, noise) is drawn from
streams that never see the label, and is measured on the hand as it would be without the finding. So a film and its
normal twin, `draw_film(replace(plan, finding="", difficulty=""))`, differ where the finding is and nowhere else.

Difficulty is what a finding measures, not how it is drawn: its strength is chosen, and if need be its place and size,
until contrast, detectability and length on the film are those of its grade (`visibility.GRADES`), on every film of the
study. They stand in the JSON file beside the film.

From the bottom up: `plan` (which films), `hand` (what a hand consists of), `anatomy`, `findings`, `projection`,
`exposure`, `scene` (a healthy hand on its film), `visibility` (what is measured), `lesion` (the strength of a finding),
`markers`, `render` (one film) and `write` (a set on disk). The names below are the public ones.
"""

from preprocessing.phantom.plan import DEFAULT, DIFFICULTIES, FINDINGS, SIZE, VIEWS, FilmPlan, plan_films
from preprocessing.phantom.render import Observation, Phantom, draw_film, observe
from preprocessing.phantom.visibility import GRADES, MEASURED_SIZE, Grade, Visibility
from preprocessing.phantom.write import Summary, set_settings, write_phantoms

__all__ = [
    "DEFAULT",
    "DIFFICULTIES",
    "FINDINGS",
    "GRADES",
    "MEASURED_SIZE",
    "SIZE",
    "VIEWS",
    "FilmPlan",
    "Grade",
    "Observation",
    "Phantom",
    "Summary",
    "Visibility",
    "draw_film",
    "observe",
    "plan_films",
    "set_settings",
    "write_phantoms",
]
