"""Text, tokenisers and datasets."""
