"""Example: a teacher of handwritten digits, inverted, quantized and distilled."""

import jobs  # noqa: F401  # from here on Ctrl-C ends the process with one line
