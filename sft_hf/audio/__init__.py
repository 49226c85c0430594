"""Sound: from an encoded clip to a waveform, and what augmentation makes of it."""
