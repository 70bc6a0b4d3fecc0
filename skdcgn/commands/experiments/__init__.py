"""The command lines of experiments and searches, each by itself or all of them as a suite."""
