"""Conformal p-values in words."""

from preprocessing.wording import counted


def more_abnormal_than(p_value: float, interval: tuple[float, float], patients: int) -> str:
    """Say in words what a p-value means, with the share of calibration patients that score lower and its interval.

    interval  of the share of normals that score as high.

    >>> more_abnormal_than(8 / 413, (0.0069, 0.0347), 412)
    'more abnormal than 98.3 % of 412 normal patients [96.5, 99.3]'
    """
    share = 100 * (1 - (p_value * (patients + 1) - 1) / patients)
    limits = f"[{100 * (1 - interval[1]):.1f}, {100 * (1 - interval[0]):.1f}]"
    return f"more abnormal than {share:.1f} % of {counted(patients, 'normal patient')} {limits}"
