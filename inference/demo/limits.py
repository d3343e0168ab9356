"""What one request may ask for, so that no user keeps the others waiting or fills the memory."""

from __future__ import annotations

MAX_UPLOAD = 20_000_000  # bytes of an image
MAX_BODY = 28_000_000  # bytes of a request: such an image in base 64, and what surrounds it
MAX_IMAGE_PIXELS = 32_000_000
MAX_REGIONS = 64
MAX_CHARACTERS = 2_000  # of a phrase or a question
MAX_WAITING = 32  # requests under way and waiting
MAX_SESSIONS = 64  # users whose encoded image is kept
KEEP_SECONDS = 3_600  # a user's encoded image and files
