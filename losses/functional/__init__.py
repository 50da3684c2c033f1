"""The losses as pure functions."""

from beyondpixel.losses.functional.affinity import affinity_field
from beyondpixel.losses.functional.bound import rmi_lower_bound
from beyondpixel.losses.functional.cross_entropy import binary_cross_entropy, cross_entropy
from beyondpixel.losses.functional.cwmi import cwmi_log_det

__all__ = ["affinity_field", "binary_cross_entropy", "cross_entropy", "cwmi_log_det", "rmi_lower_bound"]
