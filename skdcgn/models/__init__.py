"""Networks: the teachers' architectures, the TinyGAN students, and classifiers."""
