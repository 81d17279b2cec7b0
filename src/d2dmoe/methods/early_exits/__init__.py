"""What methods with early exits share: where samples leave, and what that costs and achieves."""
