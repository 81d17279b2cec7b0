"""Narrow dense models, the control: what fewer hidden neurons alone would have given."""
