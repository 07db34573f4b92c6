"""`python -m bench readme`: the READMEs' tables and figures, from results files alone."""
