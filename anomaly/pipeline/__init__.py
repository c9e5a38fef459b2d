"""What verbs and the Python API both call: plan, fit, ensemble, evaluate, score new films, export heatmaps."""
