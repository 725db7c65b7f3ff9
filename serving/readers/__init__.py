"""Readers of rows in files: images, .npy, .npz, IDX and Parquet, for jobs and the console alike."""
