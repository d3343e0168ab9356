"""What one request may ask for, so that no user keeps the others waiting or fills the memory."""

from __future__ import annotations

MAX_UPLOAD = 20_000_000  # bytes of an image
MAX_BODY = 28_000_000  # bytes of a request: such an image in base 64, and what surrounds it
MAX_IMAGE_PIXELS = 32_000_000
MAX_REGIONS = 64
MAX_CHARACTERS = 2_000  # of a phrase or a question
MAX_WAITING = 32  # requests under way and waiting
MAX_SESSIONS = 64  # users whose encoded image is kept
MAX_SESSION_BYTES = 2_000_000_000  # of all users' encoded images
MAX_PAINTINGS = 32  # that were sent and not yet asked about
MAX_PAINTING_BYTES = 200_000_000  # of all of these
MAX_LAYERS = 4  # of a painting
MAX_FILE_BYTES = 2_000_000_000  # of uploads and pictures on disk
KEEP_SECONDS = 3_600  # a user's encoded image and files, after their last use
SWEEP_SECONDS = 15  # between two looks at what is kept
BODY_SECONDS = 60  # in which a request must have been sent
HEAD_SECONDS = 10  # in which its head must
