"""The nets that prepare films: SSD, U-Net and the dense baseline."""
