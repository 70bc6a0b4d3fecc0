"""What is learned from and started from: MNIST variants, ImageNet folders, class labels, pretrained files."""
