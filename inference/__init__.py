"""Classify images: engines that run a network, the classifier, and tables of predictions for many images."""
