"""What trainings and networks are told: their configs, without PyTorch, so that a command line is read at once."""
