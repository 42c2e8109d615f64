"""Choose training images without training: hashtags as labels, and selection by the scores of a teacher. No torch."""
