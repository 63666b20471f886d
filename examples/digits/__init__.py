"""A whole example: a teacher of handwritten digits, and what its images quantize and distill to."""
