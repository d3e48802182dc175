"""A project of its own that uses bielik_nemo."""
