"""Classifiers that shortcuts should not fool: networks, training, measures."""
