"""What leaves the project: ONNX bundles, DICOM objects."""
