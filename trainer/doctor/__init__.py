"""What this machine has, and the command that mends what it lacks."""

from .examination import BROKEN, MISSING, OK, Line, examine, exit_code

__all__ = ["BROKEN", "MISSING", "OK", "Line", "examine", "exit_code"]
