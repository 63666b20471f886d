"""Pages that people look at: one HTML file with its pictures and plots in it, no network, no script."""
