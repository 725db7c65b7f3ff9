"""Adopt a model that was trained elsewhere: check it, publish it as a bundle. No module of this
package imports PyTorch when it is imported."""
