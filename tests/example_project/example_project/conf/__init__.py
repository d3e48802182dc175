"""Configuration of this project: pkg://example_project.conf."""
