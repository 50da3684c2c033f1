"""Region mutual information (Zhao et al., NeurIPS 2019)."""
