"""Read what --data names into arrays: files of numbers, images, texts and tables."""
