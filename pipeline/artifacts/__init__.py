"""Models as files for other programs: each format is written, vetted and opened in one module of this package."""
