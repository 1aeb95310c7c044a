"""From a trained model to something fast: bundles, graphs, backends and the sampling loop."""
