"""Readers of rows from files: images, .npy, .npz, IDX and Parquet. Used by jobs and console."""
