"""The sweep that `pytest bench` runs: request, points, subject, check, cell, output."""
