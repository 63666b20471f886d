"""A whole example: a teacher of handwritten digits, and what its images quantize and distill to."""

import jobs  # noqa: F401  # from here on Ctrl-C ends the process with one line
