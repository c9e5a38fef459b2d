"""Synthetic X-ray films of hands, with exact ground truth, in MURA's tree: data to start with.

A hand is a skeleton in millimetres and three dimensions: x towards the thumb, y towards the fingertips, z towards the
back of the hand. It is posed, turned, projected, and weighed along every ray: bone is a tube of cortex around spongy
bone, so that its bright edges come from geometry; soft tissue is an inflated outline. The film then darkens with
exposure, gamma, scatter and noise.

No shortcut to the label: whatever is no finding (anatomy, pose, view, carrier, marker, exposure, noise) is drawn from
streams that never see the label, and is measured on the hand as it would be without the finding. So a film and its
normal twin, `draw_film(replace(plan, finding="", difficulty=""))`, differ where the finding is and nowhere else.

From the bottom up: `plan` (which films), `hand` (what a hand consists of), `anatomy`, `findings`, `projection`,
`markers`, `render` (one film) and `write` (a set on disk). The names below are the public ones.
"""

from preprocessing.phantom.plan import DEFAULT, DIFFICULTIES, FINDINGS, SIZE, VIEWS, FilmPlan, plan_films
from preprocessing.phantom.render import Phantom, draw_film
from preprocessing.phantom.write import Summary, write_phantoms

__all__ = [
    "DEFAULT",
    "DIFFICULTIES",
    "FINDINGS",
    "SIZE",
    "VIEWS",
    "FilmPlan",
    "Phantom",
    "Summary",
    "draw_film",
    "plan_films",
    "write_phantoms",
]
