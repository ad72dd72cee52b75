"""From folders of photos to data sets of HR and LR images."""
