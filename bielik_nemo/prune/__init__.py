"""Which shape a model is cut to and which of its units stay, and fitting what stays: mathematics without a model."""
