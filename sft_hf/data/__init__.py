"""Where examples come from, which of their columns mean what, and how they are split."""
