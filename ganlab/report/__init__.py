"""Reports: one self-contained page of a run or of a comparison."""
