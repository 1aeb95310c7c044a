"""From a trained model to something fast: bundles, schedules, graphs, backends and the sampling loop."""
