"""From cache rows to batches: splits, films, augmentation, loading."""
