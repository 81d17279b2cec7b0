"""D2DMoE and MoEfication: dense models converted into experts."""
