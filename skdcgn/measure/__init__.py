"""Measures of images, students and CGNs: fidelity, feature distances, cost, and means over seeds."""
