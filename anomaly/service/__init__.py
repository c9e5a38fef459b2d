"""A detector at work: over HTTP, as a DICOM node, over a folder."""
