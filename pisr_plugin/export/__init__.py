"""From a trained network to the files of other runtimes, each run and compared with PyTorch, and to a web page."""
