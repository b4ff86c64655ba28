"""What held-out rows can prove."""

from fairbilevel.certify._least import least_tolerance

__all__ = ["least_tolerance"]
