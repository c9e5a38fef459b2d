"""The ROC-AUCs that the paper published, under the names of our models, scores and variants.

Davletshina, Melnychuk et al. 2020 (arXiv 2001.10883), the hands of MURA; all 18 rows and 6 columns as reprinted in
Figure 11 of "Identification of Bone Fractures from Hand X-ray Images via Machine Learning Models" (a report of 2023).
"top-200" is `mse_topk` or `l1_topk`, "Disc. (D)" `discriminator`, "Code-Disc. (C)" `code`, "C + D"
`discriminator_code`; "w/ HE" is `-he`.
"""

import re

PAPER_VARIANTS = ("raw", "raw-he", "crop", "crop-he", "full", "full-he")

_TABLE = """
cae       mse                 .460 ± .033  .504 ± .034  .466 ± .022  .510 ± .021  .501 ± .013  .570 ± .019
cae       mse_topk            .466 ± .013  .448 ± .025  .486 ± .015  .473 ± .018  .506 ± .039  .553 ± .023
vae       kld                 .488 ± .031  .491 ± .013  .470 ± .046  .496 ± .045  .520 ± .026  .533 ± .014
vae       l1                  .432 ± .033  .446 ± .016  .438 ± .033  .438 ± .016  .435 ± .014  .483 ± .009
vae       l1_kld              .432 ± .033  .446 ± .016  .438 ± .034  .437 ± .016  .438 ± .011  .488 ± .011
vae       l1_topk             .438 ± .017  .472 ± .010  .440 ± .025  .471 ± .013  .428 ± .013  .481 ± .010
vae       mse                 .432 ± .033  .446 ± .016  .438 ± .033  .438 ± .016  .435 ± .014  .483 ± .009
vae       mse_kld             .432 ± .033  .446 ± .016  .438 ± .033  .438 ± .016  .436 ± .013  .486 ± .010
vae       mse_topk            .438 ± .017  .472 ± .010  .440 ± .025  .471 ± .013  .428 ± .013  .481 ± .010
dcgan     discriminator       .497 ± .018  .491 ± .041  .493 ± .015  .493 ± .025  .530 ± .027  .527 ± .022
bigan     mse                 .471 ± .021  –            .438 ± .039  –            .491 ± .042  .522 ± .017
bigan     mse_topk            .471 ± .011  –            .459 ± .030  –            .475 ± .033  .508 ± .026
bigan     discriminator       .508 ± .007  –            .534 ± .016  –            .549 ± .006  .522 ± .019
alphagan  code                .500 ± .000  –            .500 ± .001  –            .500 ± .000  .500 ± .000
alphagan  mse                 .476 ± .029  –            .466 ± .022  –            .442 ± .013  .528 ± .018
alphagan  mse_topk            .465 ± .031  –            .446 ± .018  –            .422 ± .016  .533 ± .013
alphagan  discriminator       .503 ± .022  –            .534 ± .022  –            .607 ± .016  .584 ± .012
alphagan  discriminator_code  .503 ± .022  –            .534 ± .022  –            .607 ± .016  .584 ± .012
"""


def _parse(text: str) -> dict[tuple[str, str, str], tuple[float, float] | None]:
    figures: dict[tuple[str, str, str], tuple[float, float] | None] = {}
    for line in text.strip().splitlines():
        model, score, *cells = re.split(r"\s{2,}", line)
        for variant, cell in zip(PAPER_VARIANTS, cells, strict=True):
            mean, _, sd = cell.partition(" ± ")
            figures[model, score, variant] = None if cell == "–" else (float(mean), float(sd))
    return figures


PAPER = _parse(_TABLE)
"""(model, score, variant) -> mean and standard deviation over seeds, None where the paper has a dash."""
