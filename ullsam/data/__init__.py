"""Images, masks and datasets."""
