"""Classifiers that shortcuts should not fool, and the features of digits: networks, training, measures."""
